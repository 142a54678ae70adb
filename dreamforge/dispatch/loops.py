"""The one shape of a background loop: a thread that does one thing again and again."""

import logging
import random
import threading
import time
from collections.abc import Callable

from dreamforge.errors import Unavailable

log = logging.getLogger(__name__)

_BACKOFF = 5.0
"""Seconds that turns may be apart because a dependency is away, or two intervals where that is more: much longer, and
accepted work would wait for nothing once it is back."""


class Loop:
    """Calls ``once`` every ``interval`` seconds, with jitter, more rarely while a dependency is away."""

    def __init__(self, *, name: str, interval: float, once: Callable[[], None]) -> None:
        self.name = name
        self._ended_well_at: float | None = None
        self._interval = interval
        self._once = once
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin, with the first turn at once."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """False once the thread has ended, wanted or not."""
        return self._thread.is_alive()

    def end(self) -> None:
        """Ask the loop to end after its present turn."""
        self._ending.set()

    def join(self, timeout: float) -> None:
        """Wait for the end, ``timeout`` seconds at most."""
        self._thread.join(timeout)

    @property
    def seconds_since(self) -> float | None:
        """How long ago a turn ended well; None when none has."""
        return None if self._ended_well_at is None else time.monotonic() - self._ended_well_at

    def _run(self) -> None:
        pause = self._interval
        while not self._ending.is_set():
            pause = self._interval if self._turn() else min(pause * 2, max(_BACKOFF, self._interval * 2))
            self._ending.wait(pause * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    def _turn(self) -> bool:
        try:
            self._once()
        except Unavailable as error:
            log.warning("loop waits for a dependency", extra={"loop": self.name, "code": error.code})
            return False
        except Exception:
            log.exception("loop failed", extra={"loop": self.name})
            return False
        self._ended_well_at = time.monotonic()
        return True
