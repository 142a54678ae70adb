"""Waiting for a database that is away."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from dreamforge.errors import DatabaseUnavailable

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_PAUSE = 1.0


def outlast(action: Callable[[], _Result], *, may_wait: Callable[[], bool]) -> _Result:
    """The result of ``action``, repeated while the database is away. Raises ``DatabaseUnavailable`` once it may not."""
    while True:
        try:
            return action()
        except DatabaseUnavailable:
            if not may_wait():
                raise
            log.warning("waiting for the database")
            time.sleep(_PAUSE)


def for_seconds(seconds: float) -> Callable[[], bool]:
    """True until ``seconds`` from now have passed."""
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() < deadline
