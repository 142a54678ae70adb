"""`dreamforge status`: what runs, where, since when, and what it uses."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx2
import psutil
import typer
from rich.console import Console
from rich.table import Table

from dreamforge import __version__
from dreamforge.cli.configuration import load_settings, told_to
from dreamforge.embedded.state import StackState, holder, read_state

EXIT_NOT_READY = 2
EXIT_NOT_RUNNING = 3
_MIB = 1024 * 1024


@dataclass(frozen=True)
class PartStatus:
    """One server as it is now. ``memory_mib`` is of all its processes (PSS: shared pages are shared out)."""

    name: str
    title: str
    running: bool
    pid: int
    seconds: float | None
    memory_mib: int | None
    processes: int
    version: str | None
    address: str


def status(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Tell what runs. Exit code 0: ready; 2: running but not ready; 3: nothing is running."""
    console = Console()
    with told_to(console):
        data_dir = load_settings().data_dir.absolute()
        state = read_state(data_dir)
        content = _content(data_dir, state)
        if as_json:
            typer.echo(json.dumps(content, indent=2))
        else:
            _show(console, content)
        raise typer.Exit(_exit_code(content))


def _exit_code(content: dict[str, Any]) -> int:
    if not content["running"]:
        return EXIT_NOT_RUNNING
    return 0 if content["readiness"] == "ok" else EXIT_NOT_READY


def _content(data_dir: Path, state: StackState | None) -> dict[str, Any]:
    return {
        "running": holder(data_dir) is not None,
        "version": __version__,
        "data_dir": str(data_dir),
        "pid": state.pid if state else None,
        "seconds": round(time.time() - state.started_at, 1) if state else None,
        "api": state.api if state else None,
        "dashboard": state.dashboard if state else None,
        **_readiness(state),
        "parts": [asdict(part) for part in _parts(state)],
        "disk_mib": _disk(data_dir),
    }


def _readiness(state: StackState | None) -> dict[str, Any]:
    if state is None:
        return {"readiness": None, "checks": {}}
    try:
        answer = httpx2.get(f"{state.api}/readyz", timeout=5).json()
        return {"readiness": answer["status"], "checks": answer["checks"]}
    except (httpx2.HTTPError, ValueError, KeyError):
        return {"readiness": "starting" if state.ready_at is None else "unavailable", "checks": {}}


def _parts(state: StackState | None) -> list[PartStatus]:
    if state is None:
        return []
    parts: list[PartStatus] = []
    for name, part in state.parts.items():
        family = _family(part.pid)
        parts.append(
            PartStatus(
                name=name,
                title=part.title,
                running=bool(family),
                pid=part.pid,
                seconds=round(time.time() - family[0].create_time(), 1) if family else None,
                memory_mib=sum(map(_memory, family)) // _MIB if family else None,
                processes=len(family),
                version=part.version,
                address=part.address,
            )
        )
    return parts


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _memory(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def _disk(data_dir: Path) -> dict[str, int]:
    folders = sorted(path for path in data_dir.glob("*") if path.is_dir() and not path.is_symlink())
    return {folder.name: _size(folder) // _MIB for folder in folders}


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except OSError:
            continue  # gone meanwhile, or somebody else's
    return total


def _show(console: Console, content: dict[str, Any]) -> None:
    if not content["running"]:
        console.print(f"Nothing is running over {content['data_dir']}.", highlight=False, soft_wrap=True)
        return
    console.print(f"Dream Forge {content['version']} over {content['data_dir']}", highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for heading in ("part", "state", "pid", "since", "memory", "version", "address"):
        table.add_column(heading, justify="right" if heading in {"pid", "since", "memory"} else "left")
    for part in content["parts"]:
        table.add_row(
            part["title"],
            "running" if part["running"] else "[red]away[/red]",
            str(part["pid"]),
            _duration(part["seconds"]),
            f"{part['memory_mib']} MiB" if part["memory_mib"] is not None else "",
            part["version"] or "",
            part["address"],
        )
    console.print(table)
    disk = ", ".join(f"{name} {size}" for name, size in content["disk_mib"].items())
    console.print(f"Disk, MiB: {disk}", highlight=False, soft_wrap=True)
    console.print(f"Ray dashboard: {content['dashboard']}", highlight=False)
    console.print(f"API: {content['api']} is {content['readiness'] or 'starting'}", highlight=False)
    for name, check in content["checks"].items():
        if not check["ok"]:
            console.print(f"  [red]✗[/red] {name}: {check['message']}", highlight=False)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
