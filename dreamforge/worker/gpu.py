"""The GPU this process was given, and its memory, by NVML.

NVML is asked, not CUDA: the supervisor must not open a context on the card whose memory it measures.
"""

import contextlib
from collections.abc import Generator, Mapping
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
    """Bytes in use by everybody on the card (or slice), and in all.

    ``by_process`` is who uses how much, by process id as NVML knows it; None where NVML does not say.
    """

    used_bytes: int
    total_bytes: int
    by_process: Mapping[int, int] | None = None


def visible_gpu(cuda_visible_devices: str | None) -> GpuDevice | NoGpu | BrokenGpu:
    """The first GPU that ``CUDA_VISIBLE_DEVICES`` names, by index or UUID; without the variable the first of all.

    Of a card that is cut into slices CUDA takes the first, so that is the one. A machine without a driver or a card has
    none. One whose driver fails, or that lacks the card that was named, has a broken one: a step for it must fail, not
    crawl along on the CPU.
    """
    try:
        with _nvml():
            if pynvml.nvmlDeviceGetCount() == 0:
                return NoGpu("the machine has none")
            handle = _handle(cuda_visible_devices)
            if handle is None:
                return NoGpu("CUDA_VISIBLE_DEVICES names none")
            handle = _first_slice(handle)
            if handle is None:
                return BrokenGpu("The card is to be cut into slices (MIG), and has none.")
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
            handle = pynvml.nvmlDeviceGetHandleByUUID(device.uuid.encode())
            memory: Any = pynvml.nvmlDeviceGetMemoryInfo(handle)
            return GpuMemoryReading(
                used_bytes=int(memory.used), total_bytes=int(memory.total), by_process=_by_process(handle)
            )
    except pynvml.NVMLError as error:
        raise GpuError(f"NVML: {error}", details={"gpu": device.uuid}) from error


def _by_process(handle: Any) -> dict[int, int] | None:
    """Who uses how much. Slices, containers and some drivers tell nothing of it, or not all."""
    used: dict[int, int] = {}
    try:
        for ask in (pynvml.nvmlDeviceGetComputeRunningProcesses_v3, pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3):
            for process in ask(handle):
                if process.usedGpuMemory is None:
                    return None
                used[int(process.pid)] = int(process.usedGpuMemory)
    except pynvml.NVMLError:
        return None
    return used


def _handle(cuda_visible_devices: str | None) -> Any:
    if cuda_visible_devices is None:
        return pynvml.nvmlDeviceGetHandleByIndex(0)
    first = cuda_visible_devices.split(",")[0].strip()
    if not first or first == "-1" or first == "NoDevFiles":
        return None
    if first.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(first))
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(first.encode())
    except pynvml.NVMLError:
        handle = _by_beginning(first)
        if handle is None:
            raise
        return handle


def _by_beginning(uuid: str) -> Any:
    """CUDA takes the beginning of a UUID for the whole, as long as it is one card's only."""
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    meant = [handle for handle in handles if _text(pynvml.nvmlDeviceGetUUID(handle)).startswith(uuid)]
    return meant[0] if len(meant) == 1 else None


def _first_slice(handle: Any) -> Any:
    """The handle itself where a card is whole; None where it is to be cut and is not."""
    try:
        is_cut = pynvml.nvmlDeviceGetMigMode(handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    except pynvml.NVMLError:
        # A card that cannot be cut, or a slice.
        return handle
    if not is_cut or _text(pynvml.nvmlDeviceGetUUID(handle)).startswith("MIG-"):
        return handle
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with contextlib.suppress(pynvml.NVMLError):
            return pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
    return None


@contextmanager
def _nvml() -> Generator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
