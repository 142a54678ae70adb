"""An attempt's writes, in order and out of the way: whatever draws does not wait for the database."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Self

from dreamforge.errors import DatabaseUnavailable, LeaseLost
from dreamforge.jobs.events import Event, ItemFinished, ItemProgress, ItemStarted, ModelInstalled, StepDegraded
from dreamforge.jobs.progress import Stage
from dreamforge.store.attempts import AttemptStore, NewArtifact

log = logging.getLogger(__name__)

FIRST_NUMBER = 1
"""That of the write by which the supervisor takes over, which comes before the journal."""
_PAUSE = 0.5
"""Seconds between two tries while the database is away."""

_Write = Callable[[int], None]
"""A write that is made under a number; see `AttemptStore`."""


@dataclass(frozen=True)
class _Entry:
    """A write that is to be made. ``progress_of`` is its item, where a later progress may stand for it."""

    write: _Write
    done: Future[None]
    progress_of: int | None = None


class Journal:
    """Makes the writes it is given, in that order, in a thread of its own, from ``with`` to the end of the block.

    While the database is away entries wait, also at the end. Of an item's progress only the last does, so there are
    never more of them than the runner's items and lines make. Once it has been away for ``grace`` seconds, and when the
    attempt was replaced, whatever waits is dropped, and ``check`` raises ``DatabaseUnavailable`` or ``LeaseLost``.
    Whoever comes after the end is told ``DatabaseUnavailable``: nobody would write it.
    """

    def __init__(self, *, attempt: AttemptStore, grace: float) -> None:
        self._attempt = attempt
        self._grace = grace
        self._number = FIRST_NUMBER
        self._waiting: deque[_Entry] = deque()
        self._changed = threading.Condition()
        self._away_since: float | None = None
        self._has_repeated = False
        self._trouble: Exception | None = None
        self._is_ending = self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def is_away(self) -> bool:
        """True while writes wait for the database."""
        return self._away_since is not None

    @property
    def has_repeated(self) -> bool:
        """True once a write was tried again: an earlier try of it may have been written all the same."""
        return self._has_repeated

    def check(self) -> None:
        """Raise what has gone wrong."""
        if self._trouble is not None:
            raise self._trouble

    def record(self, event: Event) -> None:
        """Write an event that changes nothing else."""
        self._add(lambda number: self._attempt.record(event, number=number))

    def begin_item(self, event: ItemStarted, *, stage: str = Stage.ENCODE_PROMPT) -> None:
        """Write the seed an item is drawn with, and its first stage."""
        self._add(lambda number: self._attempt.begin_item(event, stage=stage, number=number))

    def record_progress(self, event: ItemProgress) -> None:
        """Raise the item's and the job's progress."""
        self._add(lambda number: self._attempt.record_progress(event, number=number), progress_of=event.item_index)

    def degrade(self, event: StepDegraded) -> None:
        """Note the rung that the step is on from now, and return when that and all before it is written."""
        self._add(lambda number: self._attempt.degrade(event, number=number)).result()

    def publish(self, new: NewArtifact) -> None:
        """Finish an item, and return when that is written. Raises as ``check`` does."""
        self._add(lambda number: self._attempt.publish(new, number=number)).result()

    def install(self, event: ModelInstalled, finished: ItemFinished) -> None:
        """Finish an item that is a model, and return when that is written. Raises as ``check`` does."""
        self._add(lambda number: self._attempt.install(event, finished, number=number)).result()

    def require_lease(self) -> None:
        """Return when all that came before is written and the attempt holds its lease. Raises as ``check`` does."""
        self._add(lambda _: self._attempt.require_lease()).result()

    def _add(self, write: _Write, *, progress_of: int | None = None) -> Future[None]:
        entry = _Entry(write, Future(), progress_of)
        with self._changed:
            self.check()
            if self._has_ended:
                raise DatabaseUnavailable("The attempt is over: nothing more of it is written.")
            if progress_of is not None:
                self._drop_progress(progress_of)
            self._waiting.append(entry)
            self._changed.notify_all()
        return entry.done

    def _drop_progress(self, item_index: int) -> None:
        """Forget what waits to be told of an item's progress, as far as nothing else was added since."""
        # The first is under way.
        for position in range(len(self._waiting) - 1, 0, -1):
            waiting = self._waiting[position]
            if waiting.progress_of is None:
                return
            if waiting.progress_of == item_index:
                del self._waiting[position]
                return

    def _run(self) -> None:
        try:
            while (entry := self._next()) is not None:
                self._number += 1
                self._outlast(entry.write)
                with self._changed:
                    self._waiting.popleft()
                entry.done.set_result(None)
        except Exception as error:  # noqa: BLE001 - raised by check() where it is seen
            self._give_up(error)

    def _next(self) -> _Entry | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_ending)
            self._has_ended = not self._waiting
            return self._waiting[0] if self._waiting else None

    def _outlast(self, write: _Write) -> None:
        while True:
            try:
                write(self._number)
            except DatabaseUnavailable:
                self._has_repeated = True
                if not self._may_wait():
                    raise
                time.sleep(min(_PAUSE, self._grace))
            else:
                self._away_since = None
                return

    def _may_wait(self) -> bool:
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning("events wait for the database")
        return time.monotonic() - self._away_since < self._grace

    def _give_up(self, error: Exception) -> None:
        with self._changed:
            self._trouble = error
            waiting = list(self._waiting)
            self._waiting.clear()
        if not isinstance(error, LeaseLost):
            log.warning("writes are given up", extra={"writes": len(waiting), "error": type(error).__name__})
        for entry in waiting:
            entry.done.set_exception(error)
