"""The schedulers by their usual names: one table for the form, the runner and the file's metadata.

Class and argument names are diffusers'; sampler and schedule names are what AUTOMATIC1111's web UI writes
(``modules/sd_samplers_kdiffusion.py`` and ``modules/sd_schedulers.py``), so that its readers recognise them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scheduler:
    """One row: our name, diffusers' class with its arguments, A1111's sampler and schedule type."""

    name: str
    diffusers_class: str
    a1111_sampler: str
    a1111_schedule: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def title(self) -> str:
        """What a person reads: sampler and schedule."""
        return f"{self.a1111_sampler} {self.a1111_schedule or ''}".strip()


UNIFORM = "Uniform"
"""Said where A1111 would otherwise take another schedule for that sampler by itself."""
_KARRAS = {"use_karras_sigmas": True}
_DPM = "DPMSolverMultistepScheduler"
_2M: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 2}
_2M_SDE: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
_3M_SDE: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}
# diffusers' own table of A1111's names (docs, "Schedulers") has the singlestep solver for DPM++ SDE.
_SDE = "DPMSolverSinglestepScheduler"

SCHEDULERS: dict[str, Scheduler] = {
    row.name: row
    for row in (
        Scheduler("euler", "EulerDiscreteScheduler", "Euler"),
        Scheduler("euler_a", "EulerAncestralDiscreteScheduler", "Euler a"),
        Scheduler("euler_karras", "EulerDiscreteScheduler", "Euler", "Karras", _KARRAS),
        Scheduler("ddim", "DDIMScheduler", "DDIM"),
        Scheduler("heun", "HeunDiscreteScheduler", "Heun"),
        Scheduler("unipc", "UniPCMultistepScheduler", "UniPC"),
        Scheduler("dpmpp_2m", _DPM, "DPM++ 2M", UNIFORM, _2M),
        Scheduler("dpmpp_2m_karras", _DPM, "DPM++ 2M", "Karras", {**_2M, **_KARRAS}),
        Scheduler("dpmpp_2m_sde", _DPM, "DPM++ 2M SDE", UNIFORM, _2M_SDE),
        Scheduler("dpmpp_2m_sde_karras", _DPM, "DPM++ 2M SDE", "Karras", {**_2M_SDE, **_KARRAS}),
        Scheduler("dpmpp_3m_sde_karras", _DPM, "DPM++ 3M SDE", "Karras", {**_3M_SDE, **_KARRAS}),
        Scheduler("dpmpp_sde", _SDE, "DPM++ SDE", UNIFORM),
        Scheduler("dpmpp_sde_karras", _SDE, "DPM++ SDE", "Karras", _KARRAS),
        Scheduler("dpm2", "KDPM2DiscreteScheduler", "DPM2", UNIFORM),
        Scheduler("dpm2_a", "KDPM2AncestralDiscreteScheduler", "DPM2 a", UNIFORM),
        Scheduler("lcm", "LCMScheduler", "LCM"),
    )
}
