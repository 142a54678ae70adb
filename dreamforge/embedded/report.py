"""What `dreamforge up` says while it works: a live line for each part in a terminal, plain lines elsewhere."""

import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext

from rich.console import Console


class Report:
    """Lines about the parts, and the seconds they took."""

    def __init__(self, *, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str, doing: str) -> Generator[list[str]]:
        """A part of the work. Put words into the list that is yielded to have them said when it is done."""
        remarks: list[str] = []
        began = time.monotonic()
        if self._console.is_terminal:
            waiting = self._console.status(f"{name}: {doing}")
        else:
            self._console.print(f"  {name}: {doing}", highlight=False)
            waiting = nullcontext()
        with waiting:
            yield remarks
        self.seconds[name] = round(time.monotonic() - began, 2)
        said = " ".join([name, *remarks])
        self._console.print(f"[green]✓[/green] {said:<44} {self.seconds[name]:5.1f} s", highlight=False)

    def say(self, line: str = "") -> None:
        """Print a line."""
        self._console.print(line, highlight=False, soft_wrap=True)

    @property
    def total(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began
