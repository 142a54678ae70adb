"""Watching over the running parts: one that ends is started again."""

import signal
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

from dreamforge.embedded.orphans import end_orphans
from dreamforge.embedded.part import TITLES, Part
from dreamforge.embedded.report import Report
from dreamforge.embedded.trouble import StackError

_WATCH_SECONDS = 0.5
_MOST_BACKOFF = 30.0
_STEADY_SECONDS = 60.0
"""A part that has lived this long is forgiven its earlier ends."""


class Watch:
    """Looks after the parts. ``revive`` starts one of them and returns once it serves again."""

    def __init__(self, *, parts: Mapping[str, Part], revive: Callable[[str], None], report: Report) -> None:
        self._parts = parts
        self._revive = revive
        self._report = report
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
            code = None if part.process is None else part.process.exit_code
            if code is None:
                continue
            if name not in self._due_at:
                self._schedule(name, f"{TITLES[name]} has ended ({_in_words(code)})")
            if time.monotonic() >= self._due_at[name]:
                self._start_again(name)

    def _schedule(self, name: str, what: str) -> None:
        pause = self._pause(name)
        self._due_at[name] = time.monotonic() + pause
        self._report.warn(f"{what}; starting it again{f' in {pause:g} s' if pause else ''}.")

    def _start_again(self, name: str) -> None:
        # What the dead server has left running would hold its ports and its files.
        end_orphans(known=[part.process.pid for part in self._parts.values() if part.process is not None])
        began = time.monotonic()
        try:
            self._revive(name)
        except StackError as error:
            self._parts[name].stop()
            self._schedule(name, str(error).rstrip("."))
            return
        del self._due_at[name]
        self._revived_at[name] = time.monotonic()
        self._report.done(f"{TITLES[name]} is back", time.monotonic() - began)

    def _pause(self, name: str) -> float:
        """0, 1, 2, 4 … seconds, as often as it has ended in short succession."""
        if time.monotonic() - self._revived_at.get(name, time.monotonic()) > _STEADY_SECONDS:
            self._ends[name] = 0
        ends = self._ends.get(name, 0)
        self._ends[name] = ends + 1
        return min(_MOST_BACKOFF, 2.0 ** (ends - 1)) if ends else 0.0


def _in_words(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
