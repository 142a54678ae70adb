"""Watching over the running parts: one that ends is started again."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from dreamforge.embedded.orphans import end_orphans
from dreamforge.embedded.part import TITLES, Part
from dreamforge.embedded.report import Report
from dreamforge.embedded.space import is_scarce
from dreamforge.embedded.trouble import StackError

_WATCH_SECONDS = 0.5
_MOST_BACKOFF = 30.0
_STEADY_SECONDS = 60.0
"""A part that has lived this long is forgiven its earlier ends."""


class Watch:
    """Looks after the parts. ``revive`` starts one of them and returns once it serves again."""

    def __init__(
        self,
        *,
        parts: Mapping[str, Part],
        data_dir: Path,
        revive: Callable[[str], None],
        report: Report,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parts = parts
        self._data_dir = data_dir
        self._revive = revive
        self._report = report
        self._clock = clock
        self._was_scarce = False
        self._ends: dict[str, int] = {}
        self._revived_at: dict[str, float] = {}
        self._due_at: dict[str, float] = {}

    def run(self) -> NoReturn:
        """Never return: signals end it."""
        while True:
            self.look()
            time.sleep(_WATCH_SECONDS)

    def look(self) -> None:
        """Notice what has ended, and start again what is due."""
        for name, part in self._parts.items():
            ending = None if part.process is None else part.process.ending
            if ending is None:
                continue
            if name not in self._due_at:
                self._schedule(name, f"{TITLES[name]} has ended ({ending})")
            if self._clock() >= self._due_at[name]:
                self._start_again(name)
        self._look_at_the_disk()

    def _look_at_the_disk(self) -> None:
        scarce = is_scarce(self._data_dir)
        if scarce and not self._was_scarce:
            self._report.warn(f"The disk of {self._data_dir} is nearly full. Servers that cannot write will stop.")
        self._was_scarce = scarce

    def _schedule(self, name: str, what: str) -> None:
        pause = self._pause(name)
        self._due_at[name] = self._clock() + pause
        self._report.warn(f"{what}; starting it again{f' in {pause:g} s' if pause else ''}.")

    def _start_again(self, name: str) -> None:
        # What the dead server has left running would hold its ports and its files.
        self._parts[name].stop()
        end_orphans(known=[part.process.pid for part in self._parts.values() if part.process is not None])
        began = self._clock()
        try:
            self._revive(name)
        except (StackError, OSError) as error:
            self._parts[name].stop()
            self._schedule(name, str(error).rstrip("."))
            return
        del self._due_at[name]
        self._revived_at[name] = self._clock()
        self._report.done(f"{TITLES[name]} is back", self._clock() - began)

    def _pause(self, name: str) -> float:
        """0, 1, 2, 4 … seconds, as often as it has ended in short succession."""
        if self._clock() - self._revived_at.get(name, self._clock()) > _STEADY_SECONDS:
            self._ends[name] = 0
        ends = self._ends.get(name, 0)
        self._ends[name] = ends + 1
        return min(_MOST_BACKOFF, 2.0 ** (ends - 1)) if ends else 0.0
