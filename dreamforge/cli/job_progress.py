"""How a job gets on: a live bar in a terminal, plain lines elsewhere. Both on standard error."""

import sys
from types import TracebackType
from typing import Protocol, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dreamforge.api.schemas import Job
from dreamforge.cli.wording import advance


class JobProgress(Protocol):
    """Shows a job while it is followed, and the paths of its images."""

    def __enter__(self) -> Self:
        """Begin to show."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None, /
    ) -> None:
        """Show no more."""
        ...

    def update(self, job: Job) -> None:
        """Show the job as it is now."""
        ...

    def saved(self, path: str) -> None:
        """Tell where an image is."""
        ...


def job_progress(console: Console, *, tell_paths: bool) -> JobProgress:
    """The way that fits the console. ``tell_paths``: the paths go to standard output as images are saved."""
    return _Bar(console, tell_paths=tell_paths) if console.is_terminal else _Lines(console, tell_paths=tell_paths)


class _Bar:
    def __init__(self, console: Console, *, tell_paths: bool) -> None:
        self._tell_paths = tell_paths
        self._progress = Progress(
            TextColumn("{task.fields[status]}"),
            BarColumn(),
            TextColumn("{task.fields[images]}"),
            TextColumn("[dim]{task.fields[stage]}"),
            TimeElapsedColumn(),
            console=console,
            # Standard output belongs to the paths, which may go elsewhere than the bar.
            redirect_stdout=False,
        )
        self._task = self._progress.add_task("", total=1.0, status="waiting", images="", stage="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, job: Job) -> None:
        self._progress.update(
            self._task,
            completed=job.progress.fraction,
            status=job.status,
            images=advance(job),
            stage=(job.progress.stage or "").replace("_", " "),
        )

    def saved(self, path: str) -> None:
        if not self._tell_paths:
            return
        if sys.stdout.isatty():
            # Above the bar: written past it, the two would overwrite each other.
            self._progress.console.print(path, highlight=False, markup=False, soft_wrap=True)
        else:
            typer.echo(path)


class _Lines:
    def __init__(self, console: Console, *, tell_paths: bool) -> None:
        self._console = console
        self._tell_paths = tell_paths
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, job: Job) -> None:
        line = f"{job.status}, {advance(job)}"
        if line != self._last:
            self._console.print(line, highlight=False)
            self._last = line

    def saved(self, path: str) -> None:
        if self._tell_paths:
            typer.echo(path)
