"""Before a runner starts: whether what its step is estimated to take is free on the GPU."""

from dreamforge.jobs.events import GpuMemory
from dreamforge.jobs.headroom import Canvas, first_rung_that_fits
from dreamforge.jobs.outcome import Failure
from dreamforge.jobs.presets import preset_of
from dreamforge.store.step_calls import StepCall


def fitting_rung(call: StepCall, reading: GpuMemory, *, may_degrade: bool) -> int | Failure:
    """The rung to begin with, the call's own or, where it may degrade, a later one; or the failure `oom`.

    Without a GPU it is the call's own.
    """
    if reading.used_bytes is None or reading.total_bytes is None or call.model is None:
        return call.rung
    params = call.params
    return first_rung_that_fits(
        Canvas(
            width=params["width"],
            height=params["height"],
            count=len(call.items),
            is_guided=params["guidance_scale"] > 1,
            weights_bytes=call.model.size_bytes,
        ),
        preset=preset_of(params),
        rung=call.rung,
        may_degrade=may_degrade,
        free_bytes=reading.total_bytes - reading.used_bytes,
        total_bytes=reading.total_bytes,
    )
