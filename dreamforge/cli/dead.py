"""`dreamforge dead …`: dead letters, the jobs that were tried as often as they may be and wait for a person."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dreamforge.api.schemas import Job
from dreamforge.cli.configuration import tell_trouble
from dreamforge.cli.event_line import event_line
from dreamforge.cli.jobs import show as show_job
from dreamforge.cli.service import JobIdArgument, JsonOption, UrlOption, first, print_json, service, stdout_console
from dreamforge.cli.wording import age, shortened
from dreamforge.client import ApiError, Client
from dreamforge.jobs.events import EventCode
from dreamforge.jobs.job import JobStatus
from dreamforge.jobs.retry import DEAD_LETTER_CODES

dead = typer.Typer(
    help="Dead letters: jobs that were tried as often as they may be, and wait for a person.",
    no_args_is_help=True,
    add_completion=False,
)

_TRIED = (EventCode.STEP_RETRYING, EventCode.STEP_RESCUED, EventCode.STEP_FAILED)
_LARGEST_PAGE = 200
_OTHER_COLUMNS = 95
_LEAST_REASON = 20


@dead.command("list")
def list_dead(
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """List dead letters, newest first."""
    with service(url) as client:
        # One more than asked for tells whether there are more.
        shown, more = first(_dead(client, page_size=min(limit + 1, _LARGEST_PAGE)), limit)
    if as_json:
        print_json({"items": shown})
        return
    console = stdout_console()
    if not shown:
        console.print("There are no dead letters.")
        return
    console.print(_table(shown, width=console.width))
    console.print("[dim]Why: dreamforge dead show ID. Once more: dreamforge dead retry ID, or --all")
    if more:
        console.print(f"[dim]There are more: --limit {limit * 2}")


@dead.command("show")
def show(job_id: JobIdArgument, as_json: JsonOption = False, url: UrlOption = None) -> None:
    """Show a dead letter, and every try that was made."""
    with service(url) as client:
        job = client.get(job_id)
        if trouble := _why_not_dead(job):
            tell_trouble(_stderr_console(), trouble)
            raise typer.Exit(1)
        tries = list(client.logs(job_id, codes=_TRIED))
    if as_json:
        print_json({"job": job, "tries": tries})
        return
    show_job(job_id, as_json=False, url=url)
    console = stdout_console()
    console.print()
    for line in tries:
        console.print(event_line(line))


@dead.command("retry")
def retry(
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="Every dead letter there is.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Queue dead letters again, with all their tries. Images that are finished stay."""
    if bool(job_ids) == every:
        tell_trouble(_stderr_console(), "Name the jobs, or say --all.")
        raise typer.Exit(2)
    retried: list[Job] = []
    wanted: list[str] = []
    try:
        with service(url) as client:
            # All are found first: one that is retried is no longer in the list, and may soon be back.
            wanted = [str(job.id) for job in _dead(client)] if every else list(dict.fromkeys(job_ids or ()))
            for job_id in wanted:
                job = _retry(client, job_id)
                retried.extend([job] if job else [])
                if job and not as_json:
                    stdout_console().print(f"{job.id} is {job.status} again.")
    finally:
        # Also of a service that goes away meanwhile: what was done was done.
        if as_json:
            print_json({"items": retried})
    if not wanted and not as_json:
        stdout_console().print("There are no dead letters.")
    if len(retried) < len(wanted):
        raise typer.Exit(1)


def _retry(client: Client, job_id: str) -> Job | None:
    """The job, queued again; None, and why, when it is not to be: the others still are."""
    try:
        trouble = _why_not_dead(client.get(job_id))
        if trouble is None:
            return client.retry(job_id)
    except ApiError as error:
        if error.is_passing:
            raise
        # Somebody else was faster, or it does not exist.
        trouble = f"{job_id}: {error.message}"
    tell_trouble(_stderr_console(), trouble)
    return None


def _dead(client: Client, *, page_size: int = _LARGEST_PAGE) -> Iterator[Job]:
    return client.list(status=[JobStatus.FAILED], error_code=sorted(DEAD_LETTER_CODES), page_size=page_size)


def _why_not_dead(job: Job) -> str | None:
    if job.status == JobStatus.FAILED and job.error is not None and job.error.code in DEAD_LETTER_CODES:
        return None
    state = f"failed with {job.error.code}" if job.error else f"is {job.status}"
    return f"{job.id} is no dead letter: it {state}. See: dreamforge jobs show {job.id}"


def _stderr_console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def _table(found: list[Job], *, width: int) -> Table:
    now = datetime.now(UTC)
    table = Table(box=None, pad_edge=False)
    for heading in ("id", "code", "attempts", "ended", "last failure"):
        table.add_column(heading, justify="right" if heading == "attempts" else "left", no_wrap=True)
    for job in found:
        last: Any = job.error.details.get("last") if job.error else None
        reason = str(last.get("message", "")) if isinstance(last, dict) else ""
        table.add_row(
            str(job.id),
            job.error.code if job.error else "",
            str(sum(step.attempt for step in job.steps)),
            age(job.finished_at or job.updated_at, now=now),
            shortened(reason, max(_LEAST_REASON, width - _OTHER_COLUMNS)).replace("[", r"\["),
        )
    return table
