"""The GPU this process was given, and its memory, by NVML.

NVML is asked, not CUDA: the supervisor must not open a context on the card whose memory it measures.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pynvml

from dreamforge.errors import GpuError

_NO_DRIVER = (
    pynvml.nvmlExceptionClass(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND),
    pynvml.nvmlExceptionClass(pynvml.NVML_ERROR_DRIVER_NOT_LOADED),
)


@dataclass(frozen=True)
class GpuDevice:
    """A GPU by NVML's UUID (`GPU-…`, or `MIG-…` for a slice of one)."""

    uuid: str
    name: str


@dataclass(frozen=True)
class NoGpu:
    """There is none, and why."""

    reason: str


@dataclass(frozen=True)
class BrokenGpu:
    """There should be one, and NVML cannot reach it."""

    reason: str


@dataclass(frozen=True)
class GpuMemoryReading:
    """Bytes in use by everybody on the card, and in all."""

    used_bytes: int
    total_bytes: int


def visible_gpu(cuda_visible_devices: str | None) -> GpuDevice | NoGpu | BrokenGpu:
    """The first GPU that ``CUDA_VISIBLE_DEVICES`` names, by index or UUID; without the variable the first of all.

    A machine without a driver or a card has none. One whose driver fails, or that lacks the card that was named, has a
    broken one: a step for it must fail, not crawl along on the CPU.
    """
    try:
        with _nvml():
            if pynvml.nvmlDeviceGetCount() == 0:
                return NoGpu("the machine has none")
            handle = _handle(cuda_visible_devices)
            if handle is None:
                return NoGpu("CUDA_VISIBLE_DEVICES names none")
            return GpuDevice(uuid=_text(pynvml.nvmlDeviceGetUUID(handle)), name=_text(pynvml.nvmlDeviceGetName(handle)))
    except _NO_DRIVER as error:
        return NoGpu(str(error))
    except pynvml.NVMLError as error:
        named = f"CUDA_VISIBLE_DEVICES={cuda_visible_devices}: " if cuda_visible_devices else ""
        return BrokenGpu(f"{named}{error}")


def count_gpus() -> int:
    """How many NVIDIA GPUs the machine has; 0 without a driver."""
    try:
        with _nvml():
            return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0


def read_memory(device: GpuDevice) -> GpuMemoryReading:
    """The card's memory now. Raises ``GpuError`` when the card does not answer."""
    try:
        with _nvml():
            memory: Any = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(device.uuid.encode()))
            return GpuMemoryReading(used_bytes=int(memory.used), total_bytes=int(memory.total))
    except pynvml.NVMLError as error:
        raise GpuError(f"NVML: {error}", details={"gpu": device.uuid}) from error


def _handle(cuda_visible_devices: str | None) -> Any:
    if cuda_visible_devices is None:
        return pynvml.nvmlDeviceGetHandleByIndex(0)
    first = cuda_visible_devices.split(",")[0].strip()
    if not first or first == "-1" or first == "NoDevFiles":
        return None
    if first.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(first))
    return pynvml.nvmlDeviceGetHandleByUUID(first.encode())


@contextmanager
def _nvml() -> Generator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
