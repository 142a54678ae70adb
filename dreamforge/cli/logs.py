"""`dreamforge logs`: what the parts have written."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dreamforge.cli.configuration import load_settings, told_to
from dreamforge.embedded.trouble import StackError

_FILES = {
    "up": ["up.log"],
    "postgres": ["postgres.log"],
    "valkey": ["valkey.log"],
    "s3": ["s3.log"],
    "ray": ["ray.log"],
    "api": ["ray-session/worker-*.err", "ray-session/serve/replica_api_*.log"],
    "dispatcher": ["ray-session/worker-*.err", "ray-session/serve/replica_dispatcher_*.log"],
    "steps": ["ray-session/worker-*.err"],
}
"""By name: files in the logs' folder."""
_MARKS = {
    "api": ":actor_name:ServeReplica:api:",
    "dispatcher": ":actor_name:ServeReplica:dispatcher:",
    "steps": ":task_name:generate ",
}
"""What Ray writes at the top of a worker's file."""
_TOP = 1024


def logs(
    name: Annotated[str | None, typer.Argument(help=f"One of: {', '.join(_FILES)}. Without it, all.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines of each.")] = 20,
) -> None:
    """Show what the parts have written."""
    with told_to(Console(stderr=True)):
        folder = load_settings().data_dir.absolute() / "logs"
        paths = _paths(folder, name)
        command = ["tail", "-n", str(lines), *(["-F"] if follow else []), "--", *map(str, paths)]
        os.execvp("tail", command)  # noqa: S606 - coreutils knows how to follow a file


def _paths(folder: Path, name: str | None) -> list[Path]:
    if name is not None and name not in _FILES:
        raise StackError(f"There is no part {name!r}. Parts: {', '.join(_FILES)}.")
    names = [name] if name else list(_FILES)
    found = [path for part in names for path in _files_of(part, folder)]
    if not found:
        raise StackError(f"Nothing is written under {folder} yet.")
    return found


def _files_of(part: str, folder: Path) -> list[Path]:
    paths = [path for pattern in _FILES[part] for path in sorted(folder.glob(pattern)) if path.stat().st_size]
    return [path for path in paths if not path.name.startswith("worker-") or _MARKS[part] in _top(path)]


def _top(path: Path) -> str:
    with path.open(errors="replace") as stream:
        return stream.read(_TOP)
