"""One step at a time on a GPU, whatever Ray believes: a lock file per GPU that the runner inherits.

A killed supervisor may leave its runner behind for a moment. The lock belongs to the open file, which the runner holds
too, so the successor waits for the orphan's end.
"""

import fcntl
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from dreamforge.errors import GpuError, NodeError, reason_of

_POLL_SECONDS = 0.1


@contextmanager
def gpu_lock(
    folder: Path, gpu_uuid: str | None, *, timeout: float, check: Callable[[], None] = lambda: None
) -> Generator[int | None]:
    """Hold the GPU's lock; yields the descriptor for the runner to inherit, None without a GPU.

    ``check`` is called again and again while another process holds it, and may raise to end the wait. Raises
    ``GpuError`` when that process still holds it after ``timeout`` seconds.
    """
    if gpu_uuid is None:
        yield None
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / f"{gpu_uuid}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise NodeError("The GPU's lock cannot be made.", details=reason_of(error)) from error
    try:
        _acquire(descriptor, gpu_uuid, deadline=time.monotonic() + timeout, check=check)
        yield descriptor
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, gpu_uuid: str, *, deadline: float, check: Callable[[], None]) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise GpuError("Another process still uses the GPU.", details={"gpu": gpu_uuid}) from error
            check()
            time.sleep(_POLL_SECONDS)
        else:
            return
