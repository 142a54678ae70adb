"""Drawing with the tiny model in the tests' own process, as a folder and as one file."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamforge.jobs.frames import BeginItems, PrepareStep
from dreamforge.runners.sdxl import SdxlRunner
from tests import single_file

PARAMS: dict[str, Any] = {
    "prompt": "a fox",
    "negative_prompt": "blurry",
    "width": 64,
    "height": 64,
    "steps": 2,
    "guidance_scale": 6.5,
    "scheduler": "euler",
}
Pixels = np.ndarray[Any, np.dtype[np.int16]]


def of_folder(model: Path) -> PrepareStep:
    """A call for a model's folder."""
    return PrepareStep(step="generate", model_kind="sdxl", model_path=str(model), device="cpu", params=PARAMS)


def of_file(
    call: PrepareStep,
    model: Path,
    folder: Path,
    *,
    dtype: str = "float32",
    change: Callable[[dict[str, Any]], None] = lambda _: None,
) -> PrepareStep:
    """The call for the model as one file, written to ``folder``."""
    file = single_file.write(model, folder / f"{dtype}.safetensors", dtype=getattr(torch, dtype), change=change)
    return replace(call, model_path=str(file), config_path=str(model))


def draw(call: PrepareStep, **params: Any) -> Pixels:
    """The pixels of one image."""
    runner = SdxlRunner(emit=lambda _: None)
    assert runner.prepare(replace(call, params=call.params | params)) == "float32"
    (image,) = runner.run_step(BeginItems(item_indexes=[0], seeds=[7]))
    return np.frombuffer(image.pixels, np.uint8).astype(np.int16)


def difference(one: Pixels, other: Pixels) -> int:
    """The largest of any pixel's."""
    return int(abs(one - other).max())


def edit(path: Path, **changes: Any) -> None:
    """Change what a JSON file says."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
