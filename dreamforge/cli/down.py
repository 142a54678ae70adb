"""`dreamforge down`: stop the stack over the data folder."""

import contextlib
import os
import signal
import time
from pathlib import Path

from rich.console import Console

from dreamforge.cli.configuration import load_settings, told_to
from dreamforge.embedded.state import holder
from dreamforge.embedded.trouble import StackError

_STOP_SECONDS = 40.0
_POLL_SECONDS = 0.1


def down() -> None:
    """Stop everything that `dreamforge up` has started. Data stay."""
    console = Console()
    with told_to(console):
        data_dir = load_settings().data_dir.absolute()
        pid = holder(data_dir)
        if pid is None:
            console.print(f"Nothing is running over {data_dir}.", highlight=False, soft_wrap=True)
            return
        began = time.monotonic()
        with console.status("stopping"):
            _stop(pid, data_dir)
        console.print(f"[green]✓[/green] Stopped after {time.monotonic() - began:.1f} s. Data stay.", highlight=False)


def _stop(pid: int, data_dir: Path) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while holder(data_dir) is not None:
        if time.monotonic() > deadline:
            raise StackError(f"It is still stopping after {_STOP_SECONDS:g} s (process {pid}).")
        time.sleep(_POLL_SECONDS)
