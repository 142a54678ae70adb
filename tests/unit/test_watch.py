"""How often a server that keeps ending is started again."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from dreamforge.embedded import watch
from dreamforge.embedded.process import Program, ServerProcess
from dreamforge.embedded.report import Report
from dreamforge.embedded.trouble import StackError
from dreamforge.embedded.watch import Watch


class Mortal:
    """A part that lives until it is told to die, watched by a clock that stands still."""

    address = "nowhere"

    def __init__(self, folder: Path) -> None:
        self._log = folder / "mortal.log"
        self.process: ServerProcess | None = None
        self.now = 1000.0
        self.starts = 0
        self.trouble = ""
        self.heard = io.StringIO()
        report = Report(console=Console(file=self.heard, width=200), log=folder / "up.log")
        self._watch = Watch(
            parts={"valkey": self}, data_dir=folder, revive=self.revive, report=report, clock=lambda: self.now
        )

    def start(self) -> None:
        self.starts += 1
        self.process = ServerProcess(Program(name="it", command=["sleep", "60"], log=self._log))

    def wait_ready(self) -> str:
        return "1"

    def stop(self) -> None:
        if self.process:
            self.process.stop(grace=1)

    def revive(self, _: str) -> None:
        if self.trouble:
            raise StackError(self.trouble)
        self.start()

    def starts_after(self, *, seconds: float) -> int:
        """How often it has been started once that much time has passed."""
        self.now += seconds
        self._watch.look()
        return self.starts


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Mortal]:
    part = Mortal(tmp_path)
    part.start()
    yield part
    part.stop()


def test_the_pause_grows_with_each_end_and_is_forgiven_after_a_minute(mortal: Mortal) -> None:
    assert mortal.starts_after(seconds=500) == 1, "it lives"
    mortal.stop()
    assert mortal.starts_after(seconds=0) == 2, "the first time at once"
    mortal.stop()
    assert mortal.starts_after(seconds=1) == 2
    assert mortal.starts_after(seconds=1) == 3
    mortal.stop()
    assert mortal.starts_after(seconds=1) == 3
    assert mortal.starts_after(seconds=1) == 3
    assert mortal.starts_after(seconds=1) == 4
    mortal.stop()
    assert mortal.starts_after(seconds=61) == 5, "it had lived for a minute"
    assert mortal.heard.getvalue().count("Valkey has ended (signal SIGTERM); starting it again") == 4
    assert mortal.heard.getvalue().count("✓ Valkey is back") == 4


def test_a_start_that_fails_is_told_and_tried_again(mortal: Mortal) -> None:
    mortal.trouble = "The disk is full."
    mortal.stop()
    assert mortal.starts_after(seconds=0) == 1
    assert "! The disk is full; starting it again in 1 s." in mortal.heard.getvalue()
    mortal.trouble = ""
    assert mortal.starts_after(seconds=1) == 2


def test_a_disk_that_fills_is_told_once(mortal: Mortal, monkeypatch: pytest.MonkeyPatch) -> None:
    scarce = True
    monkeypatch.setattr(watch, "is_scarce", lambda _: scarce)
    for _ in range(3):
        mortal.starts_after(seconds=1)
    scarce = False
    mortal.starts_after(seconds=1)
    assert mortal.heard.getvalue().count("nearly full") == 1
    scarce = True
    mortal.starts_after(seconds=1)
    assert mortal.heard.getvalue().count("nearly full") == 2
