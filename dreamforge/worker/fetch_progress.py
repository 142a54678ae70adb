"""How far a model is on its way to this node, as events: a few a second, and always the last."""

import threading
import time
from collections.abc import Callable, Mapping

from dreamforge.jobs.events import ModelFetching

ORIGIN = "object_store"
_INTERVAL = 0.5
"""Seconds between two events of a model."""


class FetchProgress:
    """Of one model: ``sizes`` of its files that are to be fetched. Told by several threads.

    ``is_busy`` turns true while events would only pile up.
    """

    def __init__(
        self,
        *,
        model: str,
        sizes: Mapping[str, int],
        record: Callable[[ModelFetching], None],
        is_busy: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._total = sum(sizes.values())
        self._record = record
        self._is_busy = is_busy
        self._clock = clock
        self._done = dict.fromkeys(sizes, 0)
        self._lock = threading.Lock()
        self._told_at: float | None = None
        self._told = -1

    def on_bytes(self, path: str, done: int, _: int | None) -> None:
        """So many bytes of a file are here."""
        with self._lock:
            self._done[path] = done
            self._tell_in_time(path)

    def on_wait(self, path: str, _owner: str, done: int, _: int | None) -> None:
        """The same while another process of the node fetches it."""
        self.on_bytes(path, done, None)

    def end(self) -> None:
        """All of it is here."""
        with self._lock:
            if self._told != self._total:
                self._tell(self._total, None)

    def _tell_in_time(self, path: str) -> None:
        done, now = sum(self._done.values()), self._clock()
        if self._told_at is not None and (now - self._told_at < _INTERVAL or self._is_busy()):
            return
        self._told_at = now
        # What broke off may begin anew: what was told before is not taken back.
        if done > self._told:
            self._tell(min(done, self._total), path)

    def _tell(self, done: int, path: str | None) -> None:
        self._told = done
        self._record(
            ModelFetching(model=self._model, origin=ORIGIN, bytes_done=done, bytes_total=self._total, file=path)
        )
