"""How long a client bears a service that does not answer, and how often it asks meanwhile."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, repeat

RETRY_PAUSES = (0.25, 0.5, 1.0)
"""Seconds between the attempts of a call that may be repeated."""
LONG_PAUSE = 2.0
"""Seconds between the attempts behind those, while a job is being waited for."""
PATIENT_SECONDS = 35.0
"""Without an answer, while a job is being waited for: a service that is started again is back by then."""
_LEAST_SECONDS = 1.0
_SETTLED_SECONDS = 5.0
_SPREAD = 0.25


@dataclass(frozen=True)
class Pause:
    """Do nothing for a while: ``seconds``, and by chance up to ``spread`` more, so that clients do not come in step."""

    seconds: float
    spread: float = 0.0

    def drawn(self) -> float:
        """How long it is this time, in seconds."""
        return self.seconds + random.uniform(0.0, self.spread)  # noqa: S311 - no secret


def before_again(seconds: float) -> Pause:
    """The pause before something is tried again."""
    return Pause(seconds, spread=seconds * _SPREAD)


class Patience:
    """Lasts ``PATIENT_SECONDS`` from now on, and from each ``renew``. The time ``until`` ends it for good."""

    def __init__(self, *, now: Callable[[], float], until: float | None = None) -> None:
        self._now = now
        self._until = until
        self._began: float | None = None
        self.renew()

    def renew(self) -> None:
        """Somebody has answered."""
        self._end = self._now() + PATIENT_SECONDS
        self._pauses = chain(RETRY_PAUSES, repeat(LONG_PAUSE))
        self._was_asked = False

    def began(self) -> None:
        """A stream is open, which may be an answer."""
        self._began = self._now()

    def ended(self) -> None:
        """It is open no more. It was an answer if it stayed for a while, also when it brought nothing."""
        if self._began is not None and self._now() - self._began > _SETTLED_SECONDS:
            self.renew()
        self._began = None

    @property
    def left(self) -> float:
        """Seconds that the next answer may take: what is left, and a moment where nothing is."""
        return max(_LEAST_SECONDS, self._left())

    def pause(self) -> Pause | None:
        """What to do before the next attempt; None when there is to be none."""
        left = self._left()
        # One attempt may have taken it all. Another one may find another replica.
        if left <= 0 and (self._was_asked or self._is_late):
            return None
        self._was_asked = True
        pause = before_again(next(self._pauses))
        if self._until is None:
            return pause
        room = self._until - self._now()
        seconds = min(pause.seconds, room)
        return Pause(seconds, min(pause.spread, room - seconds))

    @property
    def _is_late(self) -> bool:
        return self._until is not None and self._now() >= self._until

    def _left(self) -> float:
        end = self._end if self._until is None else min(self._end, self._until)
        return end - self._now()
