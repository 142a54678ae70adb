"""One job as a person reads it."""

from collections.abc import Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dreamforge.api.schemas import Artifact, Job
from dreamforge.cli.wording import advance, age, duration, is_download, job_error, size, subject

STYLES = {
    "queued": "cyan",
    "running": "blue",
    "cancelling": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
}
_SHOWN_ELSEWHERE = {"prompt", "source"}


def show_job(console: Console, job: Job, artifacts: Sequence[Artifact], *, model: str, now: datetime) -> None:
    """Print the job, its steps where they say more than the job, and its images."""
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(job, model=model, now=now):
        facts.add_row(name, value)
    console.print(facts)
    if artifacts:
        console.print()
        console.print(_images(artifacts))


def _facts(job: Job, *, model: str, now: datetime) -> list[tuple[str, Text]]:
    status = Text(job.status, style=STYLES.get(job.status, ""))
    status.append(f", {advance(job)}", style="default")
    if job.progress.stage:
        status.append(f", {job.progress.stage.replace('_', ' ')}", style="default")
    if job.progress.queue_position is not None:
        status.append(f", place {job.progress.queue_position} in line", style="default")
    if job.progress.eta_seconds is not None:
        status.append(f", about {duration(job.progress.eta_seconds)} left", style="default")
    facts = [
        ("job", Text(str(job.id))),
        ("status", status),
        ("source" if is_download(job) else "prompt", Text(subject(job))),
        *([("model", Text(model))] if model else []),
        ("params", Text(_params(job))),
        ("priority", Text(job.priority)),
        ("created", Text(f"{_moment(job.created_at)}, {age(job.created_at, now=now)}")),
    ]
    if job.started_at:
        waited = (job.started_at - job.created_at).total_seconds()
        facts.append(("started", Text(f"{_moment(job.started_at)}, after {duration(waited)}")))
    if job.finished_at:
        took = f", after {duration((job.finished_at - job.started_at).total_seconds())}" if job.started_at else ""
        facts.append(("ended", Text(f"{_moment(job.finished_at)}{took}")))
    facts += [(f"step {step.name}", Text(f"attempt {step.attempt}, {step.status}")) for step in job.steps]
    if job.metadata:
        facts.append(("metadata", Text(", ".join(f"{name}={value}" for name, value in job.metadata.items()))))
    if job.error:
        facts.append(("error", Text(job_error(job.error), style="red")))
    return facts


def _params(job: Job) -> str:
    shown = {name: value for name, value in job.params.items() if name not in _SHOWN_ELSEWHERE}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items() if value not in (None, ""))


def _images(artifacts: Sequence[Artifact]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("image", "seed", "pixels", "size", "id"):
        table.add_column(heading, justify="left" if heading == "id" else "right", no_wrap=True)
    for artifact in artifacts:
        pixels = f"{artifact.width}x{artifact.height}"
        table.add_row(str(artifact.item_index), str(artifact.seed), pixels, size(artifact.size_bytes), str(artifact.id))
    return table


def _moment(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
