"""What a runner reports of the errors that torch, diffusers and drivers raise; in a process of its own, as always."""

import json
import subprocess
import sys
from typing import Any

import pytest

GIB = 2**30
LOW_VRAM = 'Set params.preset to "low_vram": slower, with less memory.'
_REPORT = """
import dataclasses, json, sys
import torch
from dreamforge.errors import ModelCorrupt, ModelIncompatible
from dreamforge.jobs.frames import PrepareStep
from dreamforge.runners.failures import failure_of
errors = {
    "oom": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 7.79 GiB."),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "context": RuntimeError("CUDA error: out of memory\\nCompile with TORCH_USE_CUDA_DSA"),
    "driver": RuntimeError("CUDA error: an illegal memory access was encountered"),
    "bug": ValueError("a prompt is in here somewhere\\nand more of it"),
    "silent": KeyError(),
    "unfit": ModelIncompatible(details={"lora": "grain"}),
    "ours": ModelCorrupt("The model is torn.", details={"file": "unet"}),
}
def report(name, side, preset="balanced"):
    call = PrepareStep(step="generate", model_kind="sdxl", model_path="/", device="cuda",
                       params={"width": side, "height": side, "preset": preset}, savings=[])
    return dataclasses.asdict(failure_of(errors[name], call))
reports = {f"{name} {side}": report(name, side) for name in errors for side in (1024, 64)}
presets = {f"oom {preset}": report("oom", 64, preset) for preset in ("fast", "low_vram", "of old")}
print(json.dumps(reports | presets))
"""


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, Any]]:
    """By error, and the side of the image that was drawn."""
    command = [sys.executable, "-c", _REPORT]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)


def test_a_full_gpu_is_told_with_what_was_asked_for_and_what_may_help(reports: dict[str, dict[str, Any]]) -> None:
    report = reports["oom 1024"]
    assert (report["code"], report["details"]) == ("oom", {"requested_bytes": int(2.5 * GIB)})
    assert report["suggestions"] == [
        "Try a smaller size, 768x768.",
        LOW_VRAM,
        "Try a smaller model, or a GPU with more memory.",
    ]
    assert reports["oom 64"]["suggestions"] == report["suggestions"][1:]


@pytest.mark.parametrize(
    ("preset", "advice"),
    [
        ("fast", ['Set params.preset to "balanced": one image at a time.', LOW_VRAM]),
        ("low_vram", []),
        ("of old", [LOW_VRAM]),
    ],
)
def test_a_preset_that_takes_less_memory_is_named_where_there_is_one(
    reports: dict[str, dict[str, Any]], preset: str, advice: list[str]
) -> None:
    assert reports[f"oom {preset}"]["suggestions"] == [*advice, "Try a smaller model, or a GPU with more memory."]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("cublas", "oom"),
        ("context", "oom"),
        ("driver", "gpu_error"),
        ("bug", "internal"),
        ("silent", "internal"),
        ("unfit", "model_incompatible"),
        ("ours", "model_corrupt"),
    ],
)
def test_each_error_has_its_code(reports: dict[str, dict[str, Any]], error: str, code: str) -> None:
    assert reports[f"{error} 64"]["code"] == code


def test_a_message_is_one_line_and_no_trace(reports: dict[str, dict[str, Any]]) -> None:
    assert reports["bug 64"]["message"] == "ValueError: a prompt is in here somewhere"
    assert reports["ours 64"]["message"] == "The model is torn."
    assert not [report for report in reports.values() if "Traceback" in report["message"] or "\n" in report["message"]]
