"""`dreamforge up`: the whole service on this machine."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dreamforge.cli.configuration import FORESEEN, load_settings, sentence_of, told_to
from dreamforge.cli.enduring import enduring_stdout
from dreamforge.embedded.interrupts import HurryRequested, Interrupts, StopRequested
from dreamforge.embedded.layout import Layout, lay_out, prepare_data_dir
from dreamforge.embedded.report import Report
from dreamforge.embedded.stack import Stack
from dreamforge.embedded.state import DataDirLock, StackState, holder, read_state
from dreamforge.embedded.trouble import AlreadyRunning, StackError
from dreamforge.settings import Settings
from dreamforge.worker.gpu import count_gpus

_LOGICAL_GPUS = 1
_POLL_SECONDS = 0.2
UP_LOG = "up.log"


def up(
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Go to the background once the service is ready.")
    ] = False,
) -> None:
    """Start everything on this machine and run until Ctrl-C. What ends by itself is started again."""
    console = Console(file=enduring_stdout())
    with told_to(console):
        settings = load_settings()
        try:
            if detach:
                _detach(settings, console)
            else:
                _run_in_foreground(settings, console)
        except AlreadyRunning as error:
            _say_where(console, error.data_dir)


def _run_in_foreground(settings: Settings, console: Console) -> None:
    interrupts = Interrupts()
    interrupts.install()
    try:
        data_dir = prepare_data_dir(settings)
        lock = DataDirLock(data_dir)
        # Before the layout, which makes secrets.
        lock.acquire()
        report = Report(console=console, log=data_dir / "logs" / UP_LOG)
        try:
            layout = lay_out(settings, gpus=_gpus(settings))
            stack = Stack(settings=settings, layout=layout, lock=lock, interrupts=interrupts, report=report)
            _run(stack, layout, report, interrupts)
        except FORESEEN as error:
            report.fail(sentence_of(error))
            raise
    except (StopRequested, HurryRequested):
        interrupts.caught()


def _run(stack: Stack, layout: Layout, report: Report, interrupts: Interrupts) -> None:
    try:
        notice = stack.start()
        image = stack.self_check()
        stack.note_ready()
        _greet(report, stack, layout, image=image, notice=notice)
        stack.watch()
    except StopRequested:
        interrupts.caught()
        _stop(stack, report, interrupts)
    except BaseException:
        interrupts.caught()
        with interrupts.ignored():
            stack.stop_parts()
        raise


def _stop(stack: Stack, report: Report, interrupts: Interrupts) -> None:
    report.say()
    try:
        with report.part("Stopped", "stopping; Ctrl-C again to stop at once"):
            stack.stop()
    except HurryRequested:
        with interrupts.ignored():
            stack.stop_parts()


def _detach(settings: Settings, console: Console) -> None:
    data_dir = prepare_data_dir(settings)
    if holder(data_dir) is not None:
        raise AlreadyRunning(data_dir)
    log = data_dir / "logs" / UP_LOG
    with log.open("a+") as stream:
        shown = stream.seek(0, 2)
        child = subprocess.Popen(
            [sys.executable, "-m", "dreamforge.cli.main", "up"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # Only what nobody foresaw is said there.
            stderr=stream,
            start_new_session=True,
        )
    try:
        _follow(child, data_dir, log, shown, console)
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise
    console.print("It goes on in the background; [bold]dreamforge status[/bold] and logs tell how.", highlight=False)


def _follow(child: subprocess.Popen[bytes], data_dir: Path, log: Path, shown: int, console: Console) -> None:
    """Show what the child says until it is ready. Raises ``StackError`` when it ends before."""
    while True:
        code = child.poll()
        state = read_state(data_dir)
        with log.open() as stream:
            stream.seek(shown)
            for line in stream:
                # Without the time, which the log has.
                console.print(line.rstrip("\n").partition(" ")[2], highlight=False, markup=False, soft_wrap=True)
            shown = stream.tell()
        if code == 0:
            # Another one was faster, or `dreamforge down` was.
            raise AlreadyRunning(data_dir) if holder(data_dir) else StackError("It was stopped before it was ready.")
        if code is not None:
            raise StackError(f"It did not start; see {log}.")
        if state is not None and state.pid == child.pid and state.ready_at is not None:
            return
        time.sleep(_POLL_SECONDS)


def _say_where(console: Console, data_dir: Path) -> None:
    state: StackState | None = read_state(data_dir)
    where = f" The API is at {state.api}." if state and state.ready_at else " It is still starting."
    console.print(f"A stack is running over {data_dir} already.{where}", highlight=False, soft_wrap=True)
    console.print("[bold]dreamforge status[/bold] tells more, [bold]dreamforge down[/bold] stops it.", highlight=False)


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
    report.say(f"\n{'Ctrl-C' if report.is_interactive else 'dreamforge down'} stops everything. Data stay.")


def _gpus(settings: Settings) -> int:
    if settings.gpus is not None:
        return settings.gpus
    return count_gpus() or _LOGICAL_GPUS


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
