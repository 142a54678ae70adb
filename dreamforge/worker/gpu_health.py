"""Whether a GPU may be drawn on: one whose memory has not come back is kept from everybody until it has."""

import contextlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dreamforge.errors import DatabaseUnavailable, GpuError
from dreamforge.jobs.outcome import Failure
from dreamforge.store.heartbeats import HeartbeatStore
from dreamforge.worker.memory import MemoryLevel, MemoryWatch

log = logging.getLogger(__name__)

GPU_MEMORY_LEAKED = "gpu_memory_leaked"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LOOK_SECONDS = 1.0
_BEAT_SECONDS = 5.0


class GpuHealth:
    """One GPU's. Without a GPU there is nothing to tell.

    The node remembers a dirty one by a mark in ``folder``, `GPU-….dirty`: until the memory is back, the machine is
    started anew, or a person removes it. Heartbeats of the kind `gpu` tell of it.
    """

    def __init__(self, *, heartbeats: HeartbeatStore, memory: MemoryWatch, node: str, folder: Path) -> None:
        self._heartbeats = heartbeats
        self._memory = memory
        self._node = node
        self._mark = folder / f"{memory.gpu_uuid}.dirty"
        self._is_marked = False
        self._dirty_above: MemoryLevel | None = None

    @property
    def is_dirty(self) -> bool:
        """True from the moment on that more is in use than there should be."""
        return self._dirty_above is not None

    def trouble(self) -> Failure | None:
        """Why nothing may be drawn here now: what an earlier step has left, and is still there."""
        level = None if self._memory.gpu_uuid is None else self._marked_level()
        if level is None:
            return None
        try:
            is_above = self._memory.is_above(level)
        except GpuError as error:
            return Failure(error.code, error.message, error.details)
        if not is_above:
            self._become_clean()
            return None
        self._dirty_above, self._is_marked = level, True
        return self.leak()

    def leak(self) -> Failure:
        """What a step ends with that finds the GPU dirty. It is nobody's fault, and another attempt may go on."""
        details = {"gpu": self._memory.gpu_uuid, "mark": str(self._mark)}
        return Failure(GPU_MEMORY_LEAKED, "The GPU's memory has not come back after an earlier process.", details)

    def note(self) -> None:
        """Remember and tell how the memory was after a step."""
        if self._memory.gpu_uuid is None:
            return
        if self._memory.has_leaked and self._memory.level is not None:
            self._dirty_above = self._memory.level
            self._write_mark(self._memory.level)
        self._tell()

    def hold(self, *, sleep: Callable[[float], object] = time.sleep) -> None:
        """Return once the memory is back. Whoever calls it holds the GPU, so that nobody else gets it meanwhile."""
        told_at = -_BEAT_SECONDS
        while (level := self._dirty_above) is not None:
            try:
                is_clean = not self._memory.is_above(level)
            except GpuError:
                is_clean = False
                log.warning("a GPU does not answer", extra={"gpu": self._memory.gpu_uuid})
            if is_clean or (self._is_marked and not self._mark.exists()):
                self._become_clean()
                return
            if time.monotonic() - told_at >= _BEAT_SECONDS:
                told_at = time.monotonic()
                if not self._is_marked:
                    self._write_mark(level)
                self._tell()
            sleep(_LOOK_SECONDS)

    def _become_clean(self) -> None:
        self._dirty_above = None
        with contextlib.suppress(OSError):
            self._mark.unlink(missing_ok=True)
        self._tell()

    def _write_mark(self, level: MemoryLevel) -> None:
        mark = {**asdict(level), "strangers": sorted(self._memory.strangers), "boot_id": _boot_id()}
        partial = self._mark.with_suffix(".partial")
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(mark))
            partial.rename(self._mark)
            self._is_marked = True
        except OSError:
            log.warning("a dirty GPU could not be marked", extra={"gpu": self._memory.gpu_uuid})

    def _marked_level(self) -> MemoryLevel | None:
        try:
            marked = json.loads(self._mark.read_text())
            # No memory outlasts a restart of the machine.
            is_of_now = marked.pop("boot_id") == _boot_id()
            self._memory.recognize(marked.pop("strangers"))
            return MemoryLevel(**marked) if is_of_now else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def _tell(self) -> None:
        info: dict[str, Any] = {**self._memory.figures(), "is_healthy": not self.is_dirty}
        try:
            self._heartbeats.beat(id=f"gpu:{self._memory.gpu_uuid}", kind="gpu", node=self._node, info=info)
        except DatabaseUnavailable:
            log.warning("a GPU's health could not be told: the database is away")


def _boot_id() -> str | None:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return None
