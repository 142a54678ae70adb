"""The node's own memory: a limit for a runner where cgroups allow it, and the kernel's word on whom it killed for it.

See cgroups(7), and `memory.events`, `memory.max` (version 2), `memory.oom_control`, `memory.limit_in_bytes` (version 1)
in the kernel's documentation.
"""

import contextlib
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

_PROC = Path("/proc")
_PREFIX = "dreamforge-"
_COUNTERS = ("memory.events", "memory.oom_control")
_LIMITS = ("memory.max", "memory.limit_in_bytes")
# Swap would only make it slower: the limit is for both.
_SWAP_LIMITS = {"memory.max": ("memory.swap.max", "0"), "memory.limit_in_bytes": ("memory.memsw.limit_in_bytes", None)}


@dataclass(frozen=True)
class KillCounts:
    """Processes that the kernel has killed for want of memory: in our cgroup or its own, and on the whole machine.

    None where the kernel does not tell.
    """

    cgroup: int | None
    machine: int | None


def kill_counts(cgroup: Path | None) -> KillCounts:
    """The counts now, of ``cgroup`` or, without one, of that in which this process is."""
    folder = cgroup or own_cgroup()
    counts = [_counted(folder / name) for name in _COUNTERS] if folder else []
    return KillCounts(
        cgroup=next((count for count in counts if count is not None), None), machine=_counted(_PROC / "vmstat")
    )


def killed_for_memory(before: KillCounts, after: KillCounts) -> str | None:
    """Who counted a kill between the two, `cgroup` or, where there is none, `machine`; None when nobody did."""
    for name in ("cgroup", "machine"):
        earlier, later = getattr(before, name), getattr(after, name)
        if earlier is not None and later is not None:
            return name if later > earlier else None
    return None


@contextmanager
def memory_limit(limit: int | None, *, name: str) -> Generator[Path | None]:
    """A cgroup of ``limit`` bytes for a runner, until the end of the block.

    None without a limit, or where none is to be had. Whoever is in it at the end must have ended.
    """
    folder = _make(limit, name=name) if limit is not None else None
    try:
        yield folder
    finally:
        if folder is not None:
            with contextlib.suppress(OSError):
                folder.rmdir()


def join(cgroup: Path, pid: int) -> None:
    """Put a process into a cgroup; what it has taken so far stays where it was. Raises ``OSError``."""
    (cgroup / "cgroup.procs").write_text(str(pid))


def own_cgroup() -> Path | None:
    """The folder of the cgroup that counts this process' memory; None without cgroups."""
    try:
        mounts = [line.split() for line in (_PROC / "mounts").read_text().splitlines()]
        lines = [line.split(":", 2) for line in (_PROC / "self/cgroup").read_text().splitlines()]
    except OSError:
        return None
    for _, controllers, path in lines:
        is_second = not controllers
        if not is_second and "memory" not in controllers.split(","):
            continue
        for _, where, kind, options, *_ in mounts:
            if kind != ("cgroup2" if is_second else "cgroup") or not (is_second or "memory" in options.split(",")):
                continue
            # A container may see its own cgroup as the root, under the name that it has outside.
            for folder in (Path(where) / path.lstrip("/"), Path(where)):
                if any((folder / counter).is_file() for counter in _COUNTERS):
                    return folder
    return None


def _make(limit: int, *, name: str) -> Path | None:
    own = own_cgroup()
    # In version 2 a cgroup with processes has no children with limits: beside it, then.
    for parent in () if own is None else (own.parent, own):
        _sweep(parent)
        folder = parent / f"{_PREFIX}{name}-{os.getpid()}"
        try:
            folder.mkdir()
            file = next(file for file in _LIMITS if (folder / file).is_file())
            (folder / file).write_text(str(limit))
        except (OSError, StopIteration):
            with contextlib.suppress(OSError):
                folder.rmdir()
            continue
        swap, value = _SWAP_LIMITS[file]
        with contextlib.suppress(OSError):
            (folder / swap).write_text(value or str(limit))
        return folder
    log.warning("a step's memory cannot be limited here: no cgroup is ours to make")
    return None


def _sweep(parent: Path) -> None:
    """Remove what supervisors have left that were killed. One with processes in it stays."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):
            if not Path(_PROC / str(int(folder.name.rpartition("-")[2]))).exists():
                folder.rmdir()


def _counted(file: Path) -> int | None:
    try:
        lines = dict(line.split(maxsplit=1) for line in file.read_text().splitlines() if " " in line)
    except (OSError, ValueError):
        return None
    count = lines.get("oom_kill", "").strip()
    return int(count) if count.isdecimal() else None
