"""What ends a step before its work is done: a lost lease, its time limit, a cancel."""

import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from dreamforge.errors import Cancelled, RunnerTimeout
from dreamforge.worker.lease import LeaseKeeper


class Halt:
    """Looked at again and again while the runner works. ``cancel_grace`` and ``time_limit`` are seconds.

    ``check`` may raise what else ends it. A cancel comes in two steps. First the runner is to be told (``must_stop``),
    and has ``cancel_grace`` to stop by itself; then ``check`` ends it.
    """

    def __init__(
        self,
        *,
        lease: LeaseKeeper,
        time_limit: float,
        cancel_grace: float,
        check: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lease = lease
        self._time_limit = time_limit
        self._ends_at = clock() + time_limit
        self._cancel_grace = cancel_grace
        self._check = check
        self._clock = clock
        self._stop_seen_at: float | None = None

    @property
    def must_stop(self) -> bool:
        """True from the moment on that the job is to be cancelled."""
        if self._stop_seen_at is None and self._lease.is_cancelled:
            self._stop_seen_at = self._clock()
        return self._stop_seen_at is not None

    def check(self) -> None:
        """Raise what ends the step now: ``LeaseLost``, ``RunnerTimeout``, or ``Cancelled`` once the grace is over."""
        self._lease.check()
        self._check()
        if math.isinf(self._ends_at):
            self._lease.prolong()
        now = self._clock()
        if self.must_stop and now - (self._stop_seen_at or now) >= self._cancel_grace:
            raise Cancelled
        if now >= self._ends_at:
            raise RunnerTimeout(details={"seconds": self._time_limit})

    def check_idle(self) -> None:
        """As ``check`` while no runner works: nobody is to be told, and a cancel ends the step at once."""
        self.check()
        if self.must_stop:
            raise Cancelled

    @contextmanager
    def uncounted(self) -> Generator[None]:
        """Let the time limit rest for the block, in which ``check`` is called for as long as it gets on."""
        left = self._ends_at - self._clock()
        self._ends_at = math.inf
        try:
            yield
        finally:
            self._ends_at = self._clock() + left
