"""Ctrl-C and its kin: the first asks for an orderly end, the second for an immediate one."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_SECONDS = 1.0


class StopRequested(BaseException):
    """Somebody wants the stack to stop. No error: nothing but the top catches it."""


class HurryRequested(BaseException):
    """Somebody wants it to stop at once."""


class Interrupts:
    """Turns signals into exceptions in the main thread, but never between a server's start and our knowing it.

    What is raised while Python runs a finalizer or a callback from C is printed and lost, whatever its class. So it is
    raised again every second until the top says that it has ``caught`` it.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._caught = 0
        self._held = False

    def install(self) -> None:
        """Take over SIGINT, SIGTERM and SIGHUP, and SIGALRM as a clock."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, self._on_alarm)

    def caught(self) -> None:
        """Tell that what was raised has come to where something is done about it."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._caught = self._asked

    @contextmanager
    def held(self) -> Generator[None]:
        """A block that no signal breaks; one that came is raised behind it."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            # Also when the block raises: what it raises may be caught on the way, and nobody would know of the signal.
            self._raise()

    @contextmanager
    def ignored(self) -> Generator[None]:
        """A block that no signal breaks, and that leaves nothing more to ask for."""
        self._held = True
        try:
            yield
        finally:
            self.caught()
            self._held = False

    def _on_signal(self, _: int, __: FrameType | None) -> Any:
        self._asked += 1
        self._on_alarm()

    def _on_alarm(self, *_: Any) -> Any:
        if not self._held:
            self._raise()

    def _raise(self) -> None:
        if self._asked > self._caught:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
            raise StopRequested if self._asked == 1 else HurryRequested
