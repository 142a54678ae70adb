"""One connection of a download, as the others see it: it can be told to stop, and watched."""

import contextlib
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

from dreamforge.models.download.transport import Answer

_LEAST_RATE = 1024
"""Bytes a second; less is as good as nothing."""


class Dismissed(Exception):
    """This line is not wanted any more: it writes nothing."""


class Line:
    """Used by the one thread that reads from it; ``dismiss`` and ``watch`` are for others."""

    def __init__(self) -> None:
        self.has_stalled = False
        self._lock = threading.Lock()
        self._dismissed = threading.Event()
        self._answer: Answer | None = None
        self._count = 0
        self._seen = (0.0, 0)
        self._asked_at: float | None = None

    @contextmanager
    def asking(self) -> Generator[None]:
        """In the block an answer is waited for."""
        self._asked_at = time.monotonic()
        try:
            yield
        finally:
            self._asked_at = None

    def is_overdue(self, seconds: float) -> bool:
        """True when an answer has been waited for so long. Nothing ends that wait: its thread is left behind."""
        asked_at = self._asked_at
        return asked_at is not None and time.monotonic() - asked_at > seconds

    @contextmanager
    def reading(self, answer: Answer) -> Generator[None]:
        """In the block this answer is read. It is closed afterwards."""
        with contextlib.closing(answer):
            with self._lock:
                self._require()
                self._answer, self.has_stalled = answer, False
                self._seen = (time.monotonic(), self._count)
            try:
                yield
            finally:
                with self._lock:
                    self._answer = None

    @contextmanager
    def writing(self, count: int) -> Generator[None]:
        """In the block so many bytes are written; never once the line was dismissed."""
        with self._lock:
            self._require()
            yield
            self._count += count

    def rest(self, seconds: float) -> None:
        """Wait. Raises ``Dismissed`` as soon as it was."""
        if self._dismissed.wait(seconds):
            raise Dismissed

    def dismiss(self) -> None:
        """When this returns nothing more is written by this line, whatever its thread still waits for."""
        with self._lock:
            self._dismissed.set()
            if self._answer is not None:
                self._answer.stop()

    def watch(self, seconds: float) -> None:
        """Break off an answer of which next to nothing has come for so long."""
        with self._lock:
            began, count = self._seen
            now = time.monotonic()
            if self._answer is None or now - began < seconds:
                return
            if self._count - count < _LEAST_RATE * seconds:
                self.has_stalled = True
                self._answer.stop()
            self._seen = (now, self._count)

    def _require(self) -> None:
        if self._dismissed.is_set():
            raise Dismissed
