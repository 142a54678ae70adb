"""What the service takes for a step's peak of GPU memory before it starts one."""

from dreamforge.jobs.frames import PrepareStep
from dreamforge.jobs.headroom import estimated_peak


def estimated_bytes(call: PrepareStep, *, batch_size: int, weights_bytes: int) -> int:
    """Bytes, by the same function as the service."""
    params = call.params
    return estimated_peak(
        width=params["width"],
        height=params["height"],
        batch_size=batch_size,
        is_guided=params["guidance_scale"] > 1,
        weights_bytes=weights_bytes,
        savings=tuple(call.savings),
        vae_dtype=call.vae_dtype,
    )
