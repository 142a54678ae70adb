"""What `dreamforge up` says while it works: a live line for each part in a terminal, plain lines elsewhere.

All of it goes to a log file too, with the time before each line.
"""

import contextlib
import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text


class Report:
    """Lines about the parts, and the seconds they took."""

    def __init__(self, *, console: Console, log: Path) -> None:
        self._console = console
        self._log = log
        self._began = time.monotonic()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str, doing: str) -> Generator[list[str]]:
        """A part of the work. Put words into the list that is yielded to have them said when it is done."""
        remarks: list[str] = []
        began = time.monotonic()
        self._keep(f"  {name}: {doing}")
        if self._console.is_terminal:
            waiting = self._console.status(f"{name}: {doing}")
        else:
            self._console.print(f"  {name}: {doing}", highlight=False)
            waiting = nullcontext()
        with waiting:
            yield remarks
        self.seconds[name] = round(time.monotonic() - began, 2)
        self.done(" ".join([name, *remarks]), self.seconds[name])

    def done(self, what: str, seconds: float) -> None:
        """Say that something is done, and how long it took."""
        self.say(f"[green]✓[/green] {what:<44} {seconds:5.1f} s")

    def warn(self, what: str) -> None:
        """Say that something is wrong."""
        self.say(f"[yellow]![/yellow] {what}")

    def say(self, text: str = "") -> None:
        """Print one line or several; they may hold rich's markup."""
        for line in Text.from_markup(text).plain.splitlines() or [""]:
            self._keep(line)
        self._console.print(text, highlight=False, soft_wrap=True)

    def fail(self, sentence: str) -> None:
        """Keep why the work has ended; whoever ends it prints it."""
        for line in f"✗ {sentence}".splitlines():
            self._keep(line)

    @property
    def is_interactive(self) -> bool:
        """True in a terminal."""
        return self._console.is_terminal

    @property
    def total(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def _keep(self, line: str) -> None:
        # What cannot be kept, on a full disk, is still said.
        with contextlib.suppress(OSError), self._log.open("a") as stream:
            stream.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {line.rstrip()}\n")
