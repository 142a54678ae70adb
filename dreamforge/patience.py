"""Waiting for something that is away."""

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from dreamforge.errors import DatabaseUnavailable, Unavailable

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_FIRST_PAUSE = 0.5
LONGEST_PAUSE = 8.0
"""Seconds between two tries of what is away for long."""


def outlast(
    action: Callable[[], _Result],
    *,
    may_wait: Callable[[], bool],
    trouble: type[Unavailable] = DatabaseUnavailable,
    longest_pause: float = 1.0,
    sleep: Callable[[float], object] = time.sleep,
) -> _Result:
    """The result of ``action``, repeated while ``trouble`` is raised. Raises it once ``may_wait`` says no.

    Between two tries pass half a second, then twice as many each time up to ``longest_pause``, a little more or less.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            return action()
        except trouble as error:
            if not may_wait():
                raise
            log.warning("waiting for a dependency", extra={"code": error.code})
            sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            pause = min(longest_pause, pause * 2)


def for_seconds(seconds: float) -> Callable[[], bool]:
    """True until ``seconds`` from now have passed."""
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() < deadline
