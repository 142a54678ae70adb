"""Processes that outlive the server that started them: they become our children, and we end them.

See prctl(2), PR_SET_CHILD_SUBREAPER.
"""

import contextlib
import ctypes
from collections.abc import Collection

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE = 3.0


def adopt_orphans() -> None:
    """From now on an orphan below this process becomes its child, instead of init's."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphans(*, known: Collection[int]) -> int:
    """Kill every child that is not ``known``, with all below it. How many there were."""
    strangers = [child for child in psutil.Process().children() if child.pid not in known]
    family = [member for stranger in strangers for member in [stranger, *_below(stranger)]]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=_PATIENCE)
    return len(strangers)


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
