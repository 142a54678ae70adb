"""Processes that outlive the server that started them: once adopted they are our children, and we end them."""

import contextlib
from collections.abc import Collection

import psutil

_PATIENCE = 3.0


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
