"""What a runner leaves behind: processes that have left its group, and would hold its GPU's memory.

A runner and all that it starts carry a mark, `PID-STARTED-RANDOM`: the supervisor's process id, when that was started
in clock ticks since the machine's start, and what tells its runners apart. See proc_pid_stat(5).
"""

import contextlib
import ctypes
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

MARK = "DF_RUNNER_MARK"
"""The variable that holds the mark."""
_PR_SET_CHILD_SUBREAPER = 36
_MOST_SECONDS = 5.0
_ABANDONED_SECONDS = 1.0
_MARK = re.compile(r"([1-9][0-9]{0,9})-([0-9]+)-[0-9a-f]{32}")
_PAUSE = 0.02
_STATE, _STARTED = 0, 19
"""Places in /proc/PID/stat behind the name, which may hold spaces."""


def adopt_orphans() -> None:
    """Have the kernel make us the parent of our descendants' orphans. See prctl(2), PR_SET_CHILD_SUBREAPER."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def new_mark() -> str:
    """The mark for a runner of this process."""
    return f"{os.getpid()}-{_started(os.getpid())}-{uuid.uuid4().hex}"


def end_strays(mark: str) -> None:
    """Kill what below this process carries the mark, until nothing does. The runner itself must have been collected."""
    _end(lambda: _carrying(psutil.Process().children(recursive=True), lambda found: found == mark))


def end_abandoned() -> None:
    """Kill what carries the mark of a supervisor that is no more, wherever on this machine: nobody else would.

    Returns after a few seconds at most: to look at a process that hangs may take for ever.
    """
    looking = threading.Thread(target=_end_abandoned, name="strays", daemon=True)
    looking.start()
    looking.join(_MOST_SECONDS)


def is_stranger(pid: int) -> bool:
    """True for a process on this machine that lives and has nothing to do with any runner."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and MARK not in process.environ()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        # Somebody else's.
        return True


def _end_abandoned() -> None:
    try:
        _end(lambda: _carrying(_neighbours(), _is_abandoned), seconds=_ABANDONED_SECONDS)
    except (OSError, psutil.Error):
        # It is a help to the step, and no part of it.
        log.exception("nobody could look for what others have left behind")


def _end(find: Callable[[], list[psutil.Process]], *, seconds: float = _MOST_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    killed: set[int] = set()
    while strays := find():
        if time.monotonic() > deadline:
            log.error("processes of a runner live on", extra={"pids": [stray.pid for stray in strays]})
            return
        for stray in strays:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                stray.kill()
            killed.add(stray.pid)
        time.sleep(_PAUSE)
        _collect(killed)


def _carrying(processes: Iterable[psutil.Process], fits: Callable[[str], bool]) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            mark = process.environ().get(MARK)
            if mark is not None and fits(mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _neighbours() -> list[psutil.Process]:
    """The processes whose numbers mean the same as ours: a container's do not, seen from outside of it."""
    ours = _namespace(os.getpid())
    return [process for process in psutil.process_iter() if ours and _namespace(process.pid) == ours]


def _namespace(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None


def _is_abandoned(mark: str) -> bool:
    match = _MARK.fullmatch(mark)
    return match is not None and _started(int(match[1])) != match[2]


def _started(pid: int) -> str | None:
    """When a process was started, by the kernel's count; None for one that has ended, collected or not.

    Raises ``OSError`` where that cannot be found out, which is no end.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[_STATE] in {"Z", "X"} else fields[_STARTED]


def _collect(pids: set[int]) -> None:
    # Adopted, they have no other parent who would.
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
