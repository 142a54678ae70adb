"""`dreamforge jobs …`: look at jobs, read their logs, cancel, retry and delete them."""

import sys
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.prompt import Confirm
from rich.table import Table

from dreamforge.api.schemas import Job
from dreamforge.cli.configuration import tell_trouble
from dreamforge.cli.event_line import event_line, said
from dreamforge.cli.job_progress import job_progress
from dreamforge.cli.job_view import STYLES, show_job
from dreamforge.cli.service import JobIdArgument, JsonOption, UrlOption, first, print_json, service, stdout_console
from dreamforge.cli.wording import advance, age, is_download, job_error, shortened, subject
from dreamforge.client import Client
from dreamforge.client.flows import OVER
from dreamforge.jobs.events import EventCode, Level
from dreamforge.jobs.job import JobStatus

jobs = typer.Typer(
    help="Look at jobs, read their logs, cancel, retry and delete them.", no_args_is_help=True, add_completion=False
)

_LARGEST_PAGE = 200
_OTHER_COLUMNS = 74
"""What a line holds besides the prompt."""
_LEAST_PROMPT = 12
_SHORT_PROMPT = 60


@jobs.command("list")
def list_jobs(
    status: Annotated[list[JobStatus] | None, typer.Option(help="Only these; repeat it.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """List jobs, newest first."""
    with service(url) as client:
        # One more than asked for tells whether there are more.
        page_size = min(limit + 1, _LARGEST_PAGE)
        shown, more = first(client.list(status=status or (), page_size=page_size), limit)
    if as_json:
        print_json({"items": shown})
        return
    console = stdout_console()
    if not shown:
        console.print("There are no such jobs." if status else "There are no jobs yet: dreamforge generate 'a fox'")
        return
    console.print(_table(shown, width=console.width))
    if more:
        console.print(f"[dim]There are more: --limit {limit * 2}")


def _table(found: list[Job], *, width: int) -> Table:
    now = datetime.now(UTC)
    table = Table(box=None, pad_edge=False)
    for heading in ("id", "status", "images", "created", "prompt"):
        table.add_column(heading, justify="right" if heading == "images" else "left", no_wrap=True)
    for job in found:
        prompt = shortened(subject(job), max(_LEAST_PROMPT, width - _OTHER_COLUMNS))
        table.add_row(
            str(job.id),
            f"[{STYLES[job.status]}]{job.status}[/]" if job.status in STYLES else job.status,
            advance(job) if is_download(job) else f"{job.progress.items_done}/{job.progress.items_total}",
            age(job.created_at, now=now),
            # A prompt may hold brackets, which are no markup.
            prompt.replace("[", r"\["),
        )
    return table


@jobs.command("show")
def show(job_id: JobIdArgument, as_json: JsonOption = False, url: UrlOption = None) -> None:
    """Show a job and its images."""
    with service(url) as client:
        job = client.get(job_id)
        artifacts = list(client.artifacts(job.id))
        if as_json:
            print_json({"job": job, "artifacts": artifacts})
            return
        names = {model.id: f"{model.name}@{model.version}" for model in client.models()}
    model = names.get(job.model_id, "removed") if job.model_id else "" if is_download(job) else "removed"
    show_job(stdout_console(), job, artifacts, model=model, now=datetime.now(UTC))


@jobs.command("logs")
def logs(
    job_id: JobIdArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
    after: Annotated[int, typer.Option(min=0, max=2**62, help="Only events behind this number.")] = 0,
    level: Annotated[list[Level] | None, typer.Option(help="Exactly these; repeat it.", show_default=False)] = None,
    code: Annotated[list[EventCode] | None, typer.Option(help="Only these; repeat it.", show_default=False)] = None,
    image: Annotated[
        int | None, typer.Option(min=0, max=99, help="Only what is about one.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, as the service has them.")] = False,
    url: UrlOption = None,
) -> None:
    """Show what has happened to a job."""
    console = stdout_console()
    with service(url) as client:
        lines = client.logs(job_id, after=after, levels=level or (), codes=code or (), item_index=image, follow=follow)
        for line in lines:
            if as_json:
                typer.echo(line.model_dump_json())
            else:
                console.print(event_line(line))


@jobs.command("watch")
def watch(
    job_id: JobIdArgument,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line: each event, with the job's progress after it.")
    ] = False,
    url: UrlOption = None,
) -> None:
    """Show how a job gets on until it is over. Exit code 0: it succeeded; 1: it did not."""
    with service(url) as client:
        if as_json:
            for event in client.stream(job_id):
                typer.echo(event.model_dump_json())
            job = client.get(job_id)
        else:
            job = _shown_to_the_end(client, job_id)
    raise typer.Exit(0 if job.status == JobStatus.SUCCEEDED else 1)


def _shown_to_the_end(client: Client, job_id: str) -> Job:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    job = client.get(job_id)
    with job_progress(console, tell_paths=False) as progress:
        for now in client.watch(job_id):
            job = now
            progress.update(job)
    if job.status != JobStatus.SUCCEEDED:
        tell_trouble(console, job_error(job.error) if job.error else f"The job was {job.status}.")
    elif is_download(job):
        for event in client.logs(job.id, codes=(EventCode.MODEL_INSTALLED,)):
            console.print(f"✓ {said(event)} is installed. See: dreamforge model show {said(event)}", markup=False)
    return job


@jobs.command("cancel")
def cancel(job_id: JobIdArgument, as_json: JsonOption = False, url: UrlOption = None) -> None:
    """Cancel a job. Images that are finished stay."""
    with service(url) as client:
        was_over = client.get(job_id).status in OVER
        job = client.cancel(job_id)
    if as_json:
        print_json(job)
        return
    console = stdout_console()
    if was_over:
        console.print(f"The job was over already: {job.status}.")
    elif job.status == JobStatus.CANCELLING:
        console.print(f"Cancelling: it stops within seconds. See: dreamforge jobs show {job.id}")
    else:
        console.print(f"The job is {job.status}.")


@jobs.command("retry")
def retry(job_id: JobIdArgument, as_json: JsonOption = False, url: UrlOption = None) -> None:
    """Queue a job again that has failed or was cancelled. Images that are finished stay."""
    with service(url) as client:
        job = client.retry(job_id)
    if as_json:
        print_json(job)
        return
    left = job.progress.items_total - job.progress.items_done
    rest = "what was downloaded stays" if is_download(job) else f"{left} image{'' if left == 1 else 's'} to draw"
    console = stdout_console()
    console.print(f"The job is {job.status} again; {rest}.")
    follow = f"watch {job.id}" if is_download(job) else f"logs {job.id} --follow"
    console.print(f"Follow it: dreamforge jobs {follow}")


@jobs.command("delete")
def delete(
    job_id: JobIdArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Delete a job that is over, with its images. Nothing brings them back.

    Exit code 1 when it was not deleted.
    """
    with service(url) as client:
        job = client.get(job_id)
        if not (yes or _wants_deletion(job)):
            raise typer.Exit(1)
        client.delete(job.id)
    if as_json:
        print_json({"deleted": job.id})
    else:
        stdout_console().print("The job is deleted.")


def _wants_deletion(job: Job) -> bool:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not sys.stdin.isatty():
        tell_trouble(console, "There is nobody to ask whether to delete the job: say --yes.")
        return False
    console.print(f"{job.status}, {advance(job)}: {shortened(subject(job), _SHORT_PROMPT)}", markup=False)
    what = "the job? Its model stays" if is_download(job) else "the job and its images for good"
    try:
        return Confirm.ask(f"Delete {what}?", console=console, default=False)
    except EOFError:
        console.print()
        return False
