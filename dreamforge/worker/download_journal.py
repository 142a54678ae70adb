"""How a download gets on, as its job's events tell it."""

import threading
import time
from collections.abc import Callable

from dreamforge.installation.observer import Phase
from dreamforge.jobs.events import ItemProgress, ModelFetching, RunnerLog
from dreamforge.jobs.progress import DownloadStage, item_progress
from dreamforge.models.remote import RemoteModel
from dreamforge.worker.journal import Journal

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
"""Seconds between two events about bytes."""
_SHARE_OF_TIME = 100
"""They are this much rarer than the download is old: one of hours makes hundreds of them, not ten thousands."""
_ORDER = tuple(Phase)


class DownloadJournal:
    """Writes what an installation tells its ``Observer`` into the journal of an attempt, whose item it is.

    ``model`` is what the model is called, at first perhaps by its reference; ``origin`` the scheme of its source. All
    of it may be called by several threads, and raises what ``Journal`` raises. Progress never goes down.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        item_index: int,
        model: str,
        origin: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = journal
        self._item_index = item_index
        self._model = model
        self._origin = origin
        self._clock = clock
        self._lock = threading.Lock()
        self._began_at = self._phase_began_at = clock()
        self._told_at = float("-inf")
        self._told: tuple[Phase, int] | None = None
        self._progress = 0.0
        self._phase = Phase.RESOLVE
        self._sizes: dict[str, int | None] = {}
        self._done: dict[str, int] = {}
        self._waiting: set[str] = set()
        self._timings: dict[str, float] = {}

    def on_phase(self, phase: Phase) -> None:
        """Tell of each, once."""
        with self._lock:
            if _ORDER.index(phase) < _ORDER.index(self._phase):
                # Done again, to be sure of it: that is no step back.
                return
            self._end_phase()
            self._phase = phase
            self._done = {}
            self._tell_share(phase, 0.0)

    def on_resolved(self, model: RemoteModel) -> None:
        """Keep what there is to download."""
        with self._lock:
            self._sizes = {file.path: file.size for file in model.files}

    def on_bytes(self, phase: Phase, path: str, done: int, total: int | None) -> None:
        """Tell of all files together: now and then, and of the last byte in any case."""
        with self._lock:
            # A thread may be late.
            if phase is self._phase:
                self._waiting.discard(path)
                self._note(path, done, total)

    def on_wait(self, path: str, owner: str, done: int, total: int | None) -> None:
        """Tell who downloads it instead, once, and how far they are."""
        with self._lock:
            if path not in self._waiting:
                self._waiting.add(path)
                message = f"{path} is being downloaded already; it is waited for."
                self._journal.record(RunnerLog(message=message, details={"owner": owner}))
            if path in self._sizes:
                self._note(path, done, total)
            else:
                # Not one file, but all of them.
                self._tell_bytes(done, total, file=None)

    def timings(self) -> dict[str, float]:
        """Seconds by phase, of those that were begun."""
        with self._lock:
            self._end_phase()
            return dict(self._timings)

    def _end_phase(self) -> None:
        now = self._clock()
        spent = self._timings.get(self._phase, 0.0) + now - self._phase_began_at
        self._timings[self._phase.value] = round(spent, 3)
        self._phase_began_at = now

    def _note(self, path: str, done: int, total: int | None) -> None:
        self._done[path] = done
        if total is not None:
            self._sizes[path] = total
        known = [size for size in self._sizes.values() if size is not None]
        whole = sum(known) if known and len(known) == len(self._sizes) else None
        self._tell_bytes(sum(self._done.values()), whole, file=path)

    def _tell_bytes(self, done: int, total: int | None, *, file: str | None) -> None:
        now = self._clock()
        pause = min(max((now - self._began_at) / _SHARE_OF_TIME, _SHORTEST_PAUSE), _LONGEST_PAUSE)
        if self._told == (self._phase, done) or (done != total and now - self._told_at < pause):
            return
        self._told_at, self._told = now, (self._phase, done)
        if self._phase in {Phase.RESOLVE, Phase.DOWNLOAD}:
            event = ModelFetching(model=self._model, origin=self._origin, bytes_done=done, bytes_total=total, file=file)
            self._journal.record(event)
        # Whoever waits for all of it is still at the first phase.
        self._tell_share(max(self._phase, Phase.DOWNLOAD, key=_ORDER.index), min(1.0, done / total) if total else 0.0)

    def _tell_share(self, phase: Phase, share: float) -> None:
        stage = DownloadStage(phase)
        self._progress = max(self._progress, item_progress(stage, share))
        self._journal.record_progress(
            ItemProgress(
                item_index=self._item_index, stage=stage, stage_progress=round(share, 4), progress=self._progress
            )
        )
