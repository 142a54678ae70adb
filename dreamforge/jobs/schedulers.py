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


_DPM = "DPMSolverMultistepScheduler"

SCHEDULERS: dict[str, Scheduler] = {
    row.name: row
    for row in (
        Scheduler("euler", "EulerDiscreteScheduler", "Euler"),
        Scheduler("euler_a", "EulerAncestralDiscreteScheduler", "Euler a"),
        Scheduler("ddim", "DDIMScheduler", "DDIM"),
        Scheduler("heun", "HeunDiscreteScheduler", "Heun"),
        Scheduler("unipc", "UniPCMultistepScheduler", "UniPC"),
        Scheduler("dpmpp_2m", _DPM, "DPM++ 2M", arguments={"algorithm_type": "dpmsolver++", "solver_order": 2}),
        Scheduler(
            "dpmpp_2m_karras",
            _DPM,
            "DPM++ 2M",
            "Karras",
            {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
        ),
    )
}
