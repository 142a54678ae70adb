"""When a worker is killed, and what came of its job."""

import os
from dataclasses import dataclass
from signal import Signals


@dataclass(frozen=True)
class Moment:
    """Where a worker kills itself, and by which signal."""

    title: str
    place: str
    signal: Signals = Signals.SIGKILL


AFTER_POP = "pop"
AFTER_REGISTRATION = "registration"
IN_THE_JOB = "job"
BEFORE_ACKNOWLEDGEMENT = "acknowledgement"
MOMENTS = (
    Moment("right after the pop", AFTER_POP),
    Moment("right after the pop, SIGTERM", AFTER_POP, Signals.SIGTERM),
    Moment("after it was registered", AFTER_REGISTRATION),
    Moment("in the middle of the job", IN_THE_JOB),
    Moment("after its success, before the acknowledgement", BEFORE_ACKNOWLEDGEMENT),
)


@dataclass(frozen=True)
class Fate:
    """What came of a job. ``recovery``: seconds from the kill to its end; None if it never ended, or untimed."""

    executions: int
    commits: int
    recovery: float | None = None


def die(number: int) -> None:
    """Send ourselves a signal and wait for what it does."""
    os.kill(os.getpid(), number)
