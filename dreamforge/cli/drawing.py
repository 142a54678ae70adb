"""A job that a command has drawn: submitted, shown, and its images saved as they are finished."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.prompt import Confirm

from dreamforge.api.schemas import Job
from dreamforge.cli.configuration import sentence_of, tell_trouble
from dreamforge.cli.image_files import ImageFiles
from dreamforge.cli.job_progress import job_progress
from dreamforge.cli.service import EXIT_INTERRUPTED, print_json
from dreamforge.cli.wording import job_error
from dreamforge.client import Client, ClientError

CountOption = Annotated[int, typer.Option("--count", "-n", min=1, max=100, help="How many images.")]
FolderOption = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where to save them.")]
_SUCCEEDED = "succeeded"


def draw(submit: Callable[[], Job], *, client: Client, folder: Path, as_json: bool, no_wait: bool = False) -> None:
    """Have a job drawn and its images saved; ``no_wait``: tell its id and leave it running.

    ``submit``, asked again, gives the same job. Ends the command with 0 when all are saved, with 1, or with 130.
    """
    files = ImageFiles(client=client, folder=folder)
    if not no_wait:
        # Before there is a job: one whose images cannot be saved is not begun.
        files.prepare()
    drawing = _Drawing(client=client, files=files, as_json=as_json)
    try:
        job = submit()
    except KeyboardInterrupt:
        raise typer.Exit(drawing.interrupted(submit, may_ask=not no_wait)) from None
    if no_wait:
        _tell_id(job, as_json=as_json)
        return
    raise typer.Exit(drawing.follow(job))


def _tell_id(job: Job, *, as_json: bool) -> None:
    if as_json:
        print_json({"job": job, "files": []})
    else:
        typer.echo(str(job.id))


class _Drawing:
    """A submitted job, followed to its end."""

    def __init__(self, *, client: Client, files: ImageFiles, as_json: bool) -> None:
        self._client = client
        self._files = files
        self._as_json = as_json
        self._seen: Job | None = None
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    def follow(self, job: Job) -> int:
        """Show and save until the job is over; the exit code."""
        try:
            ended = self._save_until_over(job)
        except KeyboardInterrupt:
            self._interrupt(job)
            code = EXIT_INTERRUPTED
            ended = self._last_known(job)
        else:
            code = 0 if ended.status == _SUCCEEDED else 1
            self._tell_end(ended)
        self._tell_programs(ended)
        return code

    def interrupted(self, submit: Callable[[], Job], *, may_ask: bool) -> int:
        """Go on after a Ctrl-C that came before there was an answer; the exit code.

        Asked again with its key, the service names the job that it may have made.
        """
        try:
            job = submit()
        except (KeyboardInterrupt, ClientError) as error:
            if isinstance(error, ClientError) and not error.is_passing:
                raise
            self._console.print("It is not known whether there is a job. See: dreamforge jobs list")
            return EXIT_INTERRUPTED
        if may_ask:
            self._interrupt(job)
        else:
            self._tell_left(job, "goes on")
        self._tell_programs(self._last_known(job))
        return EXIT_INTERRUPTED

    def _last_known(self, job: Job) -> Job:
        """The job as it is or, when that cannot be heard now, as it was seen last."""
        try:
            return self._client.get(job.id)
        except (KeyboardInterrupt, ClientError):
            return self._seen or job

    def _tell_programs(self, job: Job) -> None:
        if self._as_json:
            print_json({"job": job, "files": [file.as_json() for file in self._files.saved]})

    def _save_until_over(self, job: Job) -> Job:
        with job_progress(self._console, tell_paths=not self._as_json) as progress:
            for now in self._client.watch(job.id):
                job = self._seen = now
                progress.update(job)
                for file in self._files.save_finished(job):
                    progress.saved(file.path)
        return job

    def _tell_end(self, job: Job) -> None:
        if job.status == _SUCCEEDED:
            return
        reason = job_error(job.error) if job.error else f"The job was {job.status}."
        tell_trouble(self._console, reason)

    def _interrupt(self, job: Job) -> None:
        """Ask whether to cancel; a second Ctrl-C leaves the job to itself, and so does nobody's being there to ask."""
        state = "goes on"
        try:
            if self._wants_cancel():
                state = "may go on"
                self._client.cancel(job.id)
                state = "is being cancelled"
                self._tell_ended(self._save_until_over(job))
                return
        except (KeyboardInterrupt, EOFError):
            self._console.print()
        except ClientError as error:
            tell_trouble(self._console, sentence_of(error))
        self._tell_left(job, state)

    def _tell_left(self, job: Job, state: str) -> None:
        self._console.print(f"The job {state}. Look at it: dreamforge jobs show {job.id}", markup=False)
        if state != "is being cancelled":
            self._console.print(f"Cancel it: dreamforge jobs cancel {job.id}", markup=False)

    def _wants_cancel(self) -> bool:
        if not (sys.stdin.isatty() and self._console.is_terminal):
            return False
        return Confirm.ask("Cancel the job? Ctrl-C again leaves it running", console=self._console, default=False)

    def _tell_ended(self, job: Job) -> None:
        saved = len(self._files.saved)
        kept = f"; {saved} image{'' if saved == 1 else 's'} saved" if saved else ""
        self._console.print(f"The job is {job.status}{kept}.", markup=False)
