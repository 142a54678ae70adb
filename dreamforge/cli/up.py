"""`dreamforge up`: the whole service on this machine, in the foreground."""

from pathlib import Path

import typer
from pydantic import ValidationError
from rich.console import Console

from dreamforge import settings as environment
from dreamforge.embedded.interrupts import HurryRequested, Interrupts, StopRequested
from dreamforge.embedded.layout import Layout, lay_out
from dreamforge.embedded.report import Report
from dreamforge.embedded.stack import Stack
from dreamforge.embedded.trouble import StackError
from dreamforge.errors import DreamForgeError
from dreamforge.settings import Settings
from dreamforge.worker.gpu import count_gpus

_LOGICAL_GPUS = 1


def up() -> None:
    """Start everything on this machine and run until Ctrl-C."""
    console = Console()
    interrupts = Interrupts()
    interrupts.install()
    try:
        code = _run(_load_settings(), console, interrupts)
    except (StackError, DreamForgeError) as error:
        console.print(f"[red]✗[/red] {_plain(error)}", highlight=False, soft_wrap=True)
        code = 1
    except (StopRequested, HurryRequested):
        code = 0
    raise typer.Exit(code)


def _run(settings: Settings, console: Console, interrupts: Interrupts) -> int:
    report = Report(console=console)
    layout = lay_out(settings, gpus=_gpus(settings))
    stack = Stack(settings=settings, layout=layout, interrupts=interrupts, report=report)
    try:
        notice = stack.start()
        image = stack.self_check()
        _greet(report, stack, layout, image=image, notice=notice)
        stack.watch()
    except StopRequested:
        return _stop(stack, report)
    except BaseException:
        stack.stop_parts()
        raise
    return 0


def _stop(stack: Stack, report: Report) -> int:
    report.say()
    try:
        with report.part("Stopped", "stopping; Ctrl-C again to stop at once"):
            stack.stop()
    except HurryRequested:
        stack.stop_parts()
    return 0


def _greet(report: Report, stack: Stack, layout: Layout, *, image: Path | None, notice: str | None) -> None:
    url = stack.base_url
    report.say(f"\n[bold]Dream Forge is ready[/bold] after {report.total:.1f} s.\n")
    if image:
        report.say(f"  First image    {_short(image)}")
    report.say(f"  API            {url}")
    report.say(f"  API docs       {url}/docs")
    report.say(f"  Ray dashboard  {layout.dashboard_url}")
    if layout.ray:
        report.say(f"                 it asks for the token in {_short(layout.data_dir / 'secrets' / 'ray_token')}")
    report.say(f"  Data and logs  {_short(layout.data_dir)}")
    if notice:
        report.say(f"\n[yellow]{notice}[/yellow]")
    report.say("\nTry:\n")
    report.say(
        f"  curl -s {url}/v1/jobs -H 'Content-Type: application/json' \\\n"
        '       -d \'{"type": "generate", "count": 2, "params": {"prompt": "a lighthouse at dawn", "seed": 7}}\''
    )
    report.say(f"  curl -s {url}/v1/jobs/JOB_ID              # the id that the first one answers")
    report.say(f"  curl -s {url}/v1/jobs/JOB_ID/artifacts    # its images, each with a URL")
    report.say("\nCtrl-C stops everything. Data stay.")


def _load_settings() -> Settings:
    try:
        return environment.load()
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        where = f"DREAMFORGE_{name}: " if name and name != "RAY_ADDRESS" else ""
        raise StackError(f"{where}{first['msg'].removeprefix('Value error, ')}") from error


def _gpus(settings: Settings) -> int:
    if settings.gpus is not None:
        return settings.gpus
    return count_gpus() or _LOGICAL_GPUS


def _plain(error: StackError | DreamForgeError) -> str:
    return error.message if isinstance(error, DreamForgeError) else str(error)


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
