"""What is measured: a model, where it computes, and how large its images are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamforge.jobs.frames import PrepareStep
from dreamforge.jobs.memory_ladder import savings
from dreamforge.jobs.presets import PRESETS

TINY, FULL = "tiny", "full"
_SIDES = {TINY: 64, FULL: 1024}
_STEPS = {TINY: 4, FULL: 30}


@dataclass(frozen=True)
class Subject:
    """``model`` is a folder in diffusers' layout, ``device`` a torch device, ``size`` `tiny` or `full`."""

    model: Path
    device: str
    size: str

    @property
    def steps(self) -> int:
        """Denoising steps of an image."""
        return _STEPS[self.size]

    @property
    def side(self) -> int:
        """Pixels a side."""
        return _SIDES[self.size]

    @property
    def is_on_gpu(self) -> bool:
        """Whether there is GPU memory to look at."""
        return self.device != "cpu"

    @property
    def weights_bytes(self) -> int:
        """What the model's weights take on disk, in bytes; in half precision also on the GPU."""
        return sum(path.stat().st_size for path in self.model.rglob("*.safetensors"))

    def call(self, preset: str, *, steps: int | None = None) -> PrepareStep:
        """A step with a preset, as the supervisor would have it drawn; with our own number of steps."""
        row = PRESETS[preset]
        params: dict[str, Any] = {
            "prompt": "a lighthouse at dusk, oil on canvas",
            "negative_prompt": "blurry",
            "width": self.side,
            "height": self.side,
            "steps": steps or self.steps,
            "guidance_scale": 6.5,
            "scheduler": "euler",
            "preset": preset,
        }
        return PrepareStep(
            step="generate",
            model_kind="sdxl",
            model_path=str(self.model),
            device=self.device,
            params=params,
            savings=list(savings(row.rung)),
            vae_dtype=row.vae_dtype,
            is_channels_last=row.is_channels_last,
        )
