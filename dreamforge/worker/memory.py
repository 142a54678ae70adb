"""The GPU's memory before, at the peak and after a step, as events and figures."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dreamforge.errors import GpuError
from dreamforge.jobs.events import GpuMemory, GpuMemoryLeaked
from dreamforge.worker.gpu import BrokenGpu, GpuDevice, GpuMemoryReading, NoGpu, read_memory

_POLL_SECONDS = 0.1
MIB = 1024 * 1024


@dataclass(frozen=True)
class MemoryLevel:
    """Bytes in use on a card: everybody's, and those that are not others', None where NVML tells nobody's apart."""

    everybody: int
    own: int | None


class MemoryWatch:
    """Readings of one GPU around one step. Without a GPU every event says so, and why.

    ``is_other`` tells of a process id whether a process that has nothing to do with us has it.
    """

    def __init__(
        self,
        *,
        gpu: GpuDevice | NoGpu | BrokenGpu,
        settle_seconds: float,
        tolerance_mib: int,
        is_other: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._gpu = gpu
        self._settle_seconds = settle_seconds
        self._tolerance = tolerance_mib * MIB
        self._is_other = is_other
        self._strangers: frozenset[int] = frozenset()
        self._level: MemoryLevel | None = None
        self._before: GpuMemory | None = None
        self._peak: int | None = None
        self._after: GpuMemory | None = None

    @property
    def gpu_uuid(self) -> str | None:
        """The GPU's UUID by NVML, None without one."""
        return self._gpu.uuid if isinstance(self._gpu, GpuDevice) else None

    @property
    def torch_device(self) -> str:
        """`cuda` or `cpu`."""
        return "cpu" if isinstance(self._gpu, NoGpu) else "cuda"

    @property
    def has_leaked(self) -> bool:
        """True when the last level after a runner stayed above that before the first one."""
        return isinstance(self._after, GpuMemoryLeaked)

    @property
    def strangers(self) -> frozenset[int]:
        """By process id, who was on the card before the step."""
        return self._strangers

    def recognize(self, strangers: Iterable[int]) -> None:
        """Take these for others, as an earlier step did."""
        self._strangers |= frozenset(strangers)

    @property
    def level(self) -> MemoryLevel | None:
        """What was in use before the step; None without a GPU."""
        return self._level

    def before(self) -> GpuMemory:
        """The reading before a runner; levels after are measured against the first. Raises ``GpuError`` without one."""
        self._peak = self._after = None
        self._before = self._read("before", note_strangers=self._level is None)
        if self._level is None and self._before.used_bytes is not None:
            self._level = _level_of(self._before)
        return self._before

    def note_peak(self, peak: int | None) -> None:
        """What the runner allocated at most, in bytes, by torch."""
        self._peak = peak

    def after(self) -> list[GpuMemory]:
        """The peak, and the reading once the memory has come back or the wait for it is over."""
        peak = self._event("peak", used=self._peak)
        try:
            self._after = self._settled()
        except GpuError as error:
            # The step is over: a reading that cannot be had changes nothing about it.
            self._after = GpuMemory(phase="after", available=False, message=error.message, gpu_uuid=self.gpu_uuid)
        return [peak, self._after]

    def is_above(self, level: MemoryLevel) -> bool:
        """True while more is in use than ``level`` and the tolerance, without others'. Raises ``GpuError``."""
        return self._is_above(level, self._read("after"))

    def figures(self) -> dict[str, Any]:
        """The same as numbers, for the step's metadata."""
        return {
            "gpu_uuid": self.gpu_uuid,
            "gpu_mem_used_before": self._before.used_bytes if self._before else None,
            "peak_gpu_mem_used": self._peak,
            "gpu_mem_used_after": self._after.used_bytes if self._after else None,
        }

    def _settled(self) -> GpuMemory:
        deadline = time.monotonic() + self._settle_seconds
        while True:
            event = self._read("after")
            if self._level is None or not self._is_above(self._level, event):
                return event
            if time.monotonic() >= deadline:
                return GpuMemoryLeaked(**event.payload())
            time.sleep(_POLL_SECONDS)

    def _is_above(self, level: MemoryLevel, event: GpuMemory) -> bool:
        if event.used_bytes is None:
            return False
        now = _level_of(event)
        if now.own is None or level.own is None:
            # All against all.
            return now.everybody > level.everybody + self._tolerance
        return now.own > level.own + self._tolerance

    def _read(self, phase: str, *, note_strangers: bool = False) -> GpuMemory:
        if isinstance(self._gpu, BrokenGpu):
            raise GpuError(self._gpu.reason)
        if isinstance(self._gpu, NoGpu):
            return self._event(phase, used=None)
        reading = read_memory(self._gpu)
        if note_strangers:
            # Nothing of ours runs yet.
            self._strangers = frozenset(reading.by_process or ())
        return self._event(
            phase, used=reading.used_bytes, total=reading.total_bytes, others=self._used_by_others(reading)
        )

    def _used_by_others(self, reading: GpuMemoryReading) -> int | None:
        if reading.by_process is None:
            return None
        return sum(used for pid, used in reading.by_process.items() if pid in self._strangers or self._is_other(pid))

    def _event(self, phase: str, *, used: int | None, total: int | None = None, others: int | None = None) -> GpuMemory:
        if not isinstance(self._gpu, GpuDevice):
            return GpuMemory(phase=phase, available=False, message=f"no GPU: {self._gpu.reason}")
        return GpuMemory(
            phase=phase,
            available=True,
            gpu_uuid=self._gpu.uuid,
            used_bytes=used,
            total_bytes=total,
            others_bytes=others,
        )


def _level_of(event: GpuMemory) -> MemoryLevel:
    used = event.used_bytes or 0
    return MemoryLevel(everybody=used, own=None if event.others_bytes is None else used - event.others_bytes)
