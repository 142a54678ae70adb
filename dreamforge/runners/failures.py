"""From an exception in the runner to the report that its supervisor gets."""

import contextlib
import re
from typing import Any

import torch

from dreamforge.errors import DreamForgeError, GpuError, OutOfMemory
from dreamforge.jobs.advice import MORE_MEMORY, smaller_size, thriftier_presets, try_preset, try_size
from dreamforge.jobs.frames import PrepareStep, StepFailed
from dreamforge.jobs.presets import preset_of

_MESSAGE_LENGTH = 500
_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_REQUESTED = re.compile(r"Tried to allocate ([\d.]+) (KiB|MiB|GiB)")
# A context, cuBLAS and cuDNN report a full card by errors of their own.
_FULL = re.compile(r"CUDA error: out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED")
_GPU = re.compile(r"\b(CUDA|CUDNN|CUBLAS|cuDNN|cuBLAS|NVML)[ _:]|NVIDIA driver")


def failure_of(error: Exception, call: PrepareStep) -> StepFailed:
    """The report of ``error``. Its message never holds a trace: that is in the runner's output."""
    if isinstance(error, DreamForgeError):
        return _report(error.code, error.message, error.details, list(error.suggestions))
    if _is_out_of_memory(error):
        return _report(OutOfMemory.code, str(OutOfMemory.__doc__), _memory_details(error), _suggestions(call))
    if isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and _GPU.search(str(error))):
        return _report(GpuError.code, _cut(error), {}, [])
    return _report(DreamForgeError.code, f"{type(error).__name__}: {_cut(error)}", {}, [])


def peak_memory() -> int | None:
    """Most device memory that torch has allocated in this process, in bytes; None without a GPU in use."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _FULL.search(str(error)) is not None


def _report(code: str, message: str, details: dict[str, Any], suggestions: list[str]) -> StepFailed:
    return StepFailed(code=code, message=message, details=details, suggestions=suggestions, peak_memory=peak_memory())


def _cut(error: Exception) -> str:
    return str(error).splitlines()[0][:_MESSAGE_LENGTH] if str(error) else ""


def _memory_details(error: Exception) -> dict[str, Any]:
    details: dict[str, Any] = {"peak_bytes": peak_memory()} if torch.cuda.is_initialized() else {}
    # Asking opens a context where there is none, which a full card refuses.
    if torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):
            details["free_bytes"], details["total_bytes"] = torch.cuda.mem_get_info()
    requested = _REQUESTED.search(str(error))
    if requested:
        details["requested_bytes"] = int(float(requested[1]) * _UNITS[requested[2]])
    return details


def _suggestions(call: PrepareStep) -> list[str]:
    size = smaller_size(call.params.get("width", 0), call.params.get("height", 0))
    presets = thriftier_presets(preset_of(call.params))
    return [*([try_size(*size)] if size else []), *map(try_preset, presets), MORE_MEMORY]
