"""The GPU's memory before, at the peak and after a step, as events and figures."""

import time
from typing import Any

from dreamforge.errors import GpuError
from dreamforge.jobs.events import GpuMemory, GpuMemoryLeaked
from dreamforge.worker.gpu import BrokenGpu, GpuDevice, NoGpu, read_memory

_POLL_SECONDS = 0.1
MIB = 1024 * 1024


class MemoryWatch:
    """Readings of one GPU around one step. Without a GPU every event says so, and why."""

    def __init__(self, *, gpu: GpuDevice | NoGpu | BrokenGpu, settle_seconds: float, tolerance_mib: int) -> None:
        self._gpu = gpu
        self._settle_seconds = settle_seconds
        self._tolerance = tolerance_mib * MIB
        self._before: int | None = None
        self._peak: int | None = None
        self._after: int | None = None

    @property
    def gpu_uuid(self) -> str | None:
        """The GPU's UUID by NVML, None without one."""
        return self._gpu.uuid if isinstance(self._gpu, GpuDevice) else None

    @property
    def torch_device(self) -> str:
        """`cuda` or `cpu`."""
        return "cpu" if isinstance(self._gpu, NoGpu) else "cuda"

    def before(self) -> GpuMemory:
        """The reading that the level after is measured against. Raises ``GpuError`` when there is none to be had."""
        event = self._read("before")
        self._before = event.used_bytes
        return event

    def note_peak(self, peak: int | None) -> None:
        """What the runner allocated at most, in bytes, by torch."""
        self._peak = peak

    def after(self) -> list[GpuMemory]:
        """The peak, and the reading once the memory has come back or the wait for it is over."""
        peak = self._event("peak", used=self._peak)
        try:
            after = self._settled()
        except GpuError as error:
            # The step is over: a reading that cannot be had changes nothing about it.
            after = GpuMemory(phase="after", available=False, message=error.message, gpu_uuid=self.gpu_uuid)
        self._after = after.used_bytes
        return [peak, after]

    def figures(self) -> dict[str, Any]:
        """The same as numbers, for the step's metadata."""
        return {
            "gpu_uuid": self.gpu_uuid,
            "gpu_mem_used_before": self._before,
            "peak_gpu_mem_used": self._peak,
            "gpu_mem_used_after": self._after,
        }

    def _settled(self) -> GpuMemory:
        deadline = time.monotonic() + self._settle_seconds
        while True:
            event = self._read("after")
            if not self._is_above_before(event):
                return event
            if time.monotonic() >= deadline:
                return GpuMemoryLeaked(**event.payload())
            time.sleep(_POLL_SECONDS)

    def _is_above_before(self, event: GpuMemory) -> bool:
        if event.used_bytes is None or self._before is None:
            return False
        return event.used_bytes > self._before + self._tolerance

    def _read(self, phase: str) -> GpuMemory:
        if isinstance(self._gpu, BrokenGpu):
            raise GpuError(self._gpu.reason)
        if isinstance(self._gpu, NoGpu):
            return self._event(phase, used=None)
        reading = read_memory(self._gpu)
        return self._event(phase, used=reading.used_bytes, total=reading.total_bytes)

    def _event(self, phase: str, *, used: int | None, total: int | None = None) -> GpuMemory:
        if not isinstance(self._gpu, GpuDevice):
            return GpuMemory(phase=phase, available=False, message=f"no GPU: {self._gpu.reason}")
        return GpuMemory(phase=phase, available=True, gpu_uuid=self._gpu.uuid, used_bytes=used, total_bytes=total)
