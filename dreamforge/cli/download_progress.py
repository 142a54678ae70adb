"""How far a download has come, for whoever waits: bars on a terminal, lines elsewhere, JSON for programs."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from dreamforge.cli.configuration import harmless
from dreamforge.cli.wording import size

if TYPE_CHECKING:
    from dreamforge.installation.observer import Observer, Phase
    from dreamforge.models.remote import RemoteModel

_LINE_SECONDS = 10.0
_JSON_SECONDS = 0.5
_LONGEST_NAME = 44


@contextmanager
def observing(console: Console, *, print_line: Callable[[dict[str, Any]], None] | None) -> "Generator[Observer]":
    """An observer of an installation that tells of it in the way that fits."""
    if print_line is not None:
        yield _JsonLines(print_line)
    elif console.is_terminal:
        with _progress(console) as progress:
            yield _Bars(progress)
    else:
        yield _Lines(console)


class _Bytes(DownloadColumn):
    """Nothing, where there is nothing to count: to ask a source, to register."""

    def render(self, task: Task) -> Text:
        """What came, of how much."""
        return super().render(task) if _is_counted(task) else Text()


class _Speed(TransferSpeedColumn):
    """Likewise."""

    def render(self, task: Task) -> Text:
        """Bytes a second."""
        return super().render(task) if _is_counted(task) else Text()


def _is_counted(task: Task) -> bool:
    return bool(task.completed or task.total)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        _Bytes(),
        _Speed(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        expand=False,
    )


class _Totals:
    """Bytes of all files together."""

    def __init__(self) -> None:
        self._done: dict[str, int] = {}
        self.lock = threading.RLock()

    def add(self, path: str, done: int) -> int:
        self._done[path] = done
        return sum(self._done.values())


_DOING = {"download": "Downloading", "publish": "Publishing", "inspect": "Checking", "register": "Registering"}
_COUNTED = {"download", "publish"}
"""Those of which bytes are told."""


class _Bars:
    """A bar for all of it, and one for each file that is on its way."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.RLock()
        self._files: dict[str, TaskID] = {}
        self._totals = _Totals()
        self._size: int | None = None
        self._is_one = False
        self._whole = progress.add_task("Asking the source", total=None)

    def on_phase(self, phase: "Phase") -> None:
        with self._lock:
            for task in self._files.values():
                self._progress.remove_task(task)
            self._files, self._totals = {}, _Totals()
            self._progress.remove_task(self._whole)
            doing = _DOING.get(phase.value, "Asking the source")
            self._whole = self._progress.add_task(doing, total=self._size if phase.value in _COUNTED else None)

    def on_resolved(self, model: "RemoteModel") -> None:
        self._size, self._is_one = model.size_bytes, len(model.files) == 1
        self._progress.console.print(_resolved(model), markup=False)

    def on_bytes(self, phase: "Phase", path: str, done: int, total: int | None) -> None:
        del phase
        with self._lock:
            self._progress.update(self._whole, completed=self._totals.add(path, done))
            task = self._task(path, total)
            self._progress.update(task, description=_name(path), completed=done, total=total)
            # Of one file the bar of all of it tells as much.
            self._progress.update(task, visible=done != total and not self._is_one)

    def on_wait(self, path: str, owner: str, done: int, total: int | None) -> None:
        with self._lock:
            words = f"{_name(path)}, which {harmless(owner)} downloads"
            self._progress.update(self._task(path, total), description=words, completed=done, total=total, visible=True)

    def _task(self, path: str, total: int | None) -> TaskID:
        if path not in self._files:
            self._files[path] = self._progress.add_task(_name(path), total=total)
        return self._files[path]


class _Lines:
    """A line for each file that is there, and one now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._totals = _Totals()
        self._told: set[str] = set()
        self._size: int | None = None
        self._due = time.monotonic() + _LINE_SECONDS

    def on_phase(self, phase: "Phase") -> None:
        self._totals, self._told = _Totals(), set()
        if phase.value in _DOING:
            self._print(f"{_DOING[phase.value]} …")

    def on_resolved(self, model: "RemoteModel") -> None:
        self._size = model.size_bytes
        self._print(_resolved(model))

    def on_bytes(self, phase: "Phase", path: str, done: int, total: int | None) -> None:
        with self._totals.lock:
            together = self._totals.add(path, done)
            if done == total and phase.value == "download" and path not in self._told:
                self._told.add(path)
                self._print(f"  {_name(path)}, {size(done)}")
            elif time.monotonic() >= self._due:
                self._due = time.monotonic() + _LINE_SECONDS
                self._print(f"  {size(together)}{_of(self._size)}")

    def on_wait(self, path: str, owner: str, done: int, total: int | None) -> None:
        with self._totals.lock:
            if path not in self._told or time.monotonic() >= self._due:
                self._told.add(path)
                self._due = time.monotonic() + _LINE_SECONDS
                self._print(f"  {_name(path)}: {harmless(owner)} downloads it, {size(done)}{_of(total)}")

    def _print(self, words: str) -> None:
        self._console.print(words, markup=False)


class _JsonLines:
    """A JSON object for everything; of bytes, two a second for each file, and always the last."""

    def __init__(self, print_line: Callable[[dict[str, Any]], None]) -> None:
        self._print_line = print_line
        self._lock = threading.Lock()
        self._due: dict[tuple[str, str], float] = {}

    def on_phase(self, phase: "Phase") -> None:
        self._print({"event": "phase", "phase": phase.value})

    def on_resolved(self, model: "RemoteModel") -> None:
        files = [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in model.files]
        told = {"source_uri": model.source_uri, "size_bytes": model.size_bytes, "files": files}
        self._print({"event": "resolved", **told})

    def on_bytes(self, phase: "Phase", path: str, done: int, total: int | None) -> None:
        if self._is_due(phase.value, path) or done == total:
            self._print({"event": "bytes", "phase": phase.value, "path": path, "done": done, "total": total})

    def on_wait(self, path: str, owner: str, done: int, total: int | None) -> None:
        if self._is_due("wait", path):
            self._print({"event": "wait", "path": path, "owner": owner, "done": done, "total": total})

    def _is_due(self, what: str, path: str) -> bool:
        with self._lock:
            now = time.monotonic()
            if now < self._due.get((what, path), 0.0):
                return False
            self._due[what, path] = now + _JSON_SECONDS
            return True

    def _print(self, event: dict[str, Any]) -> None:
        with self._lock:
            self._print_line(event)


def _resolved(model: "RemoteModel") -> str:
    files = "1 file" if len(model.files) == 1 else f"{len(model.files)} files"
    known = "" if model.size_bytes is None else f", {size(model.size_bytes)}"
    return f"{harmless(model.source_uri)}: {files}{known}"


def _of(total: int | None) -> str:
    return "" if total is None else f" of {size(total)}"


def _name(path: str) -> str:
    path = harmless(path)
    return path if len(path) <= _LONGEST_NAME else f"…{path[1 - _LONGEST_NAME :]}"


@contextmanager
def reading(console: Console, words: str) -> Generator[Callable[[str, int, int], None]]:
    """A bar over the files of a model that are read or sent, as each is told of."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), DownloadColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(words, total=None)

        def on_bytes(path: str, done: int, total: int) -> None:
            progress.update(task, description=f"{words}: {_name(path)}", completed=done, total=total)

        yield on_bytes
