"""The room on a disk that models are written to."""

import errno
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from dreamforge.errors import DiskFull
from dreamforge.models.download.limits import SPARE_BYTES

_ADVICE = "Free some (dreamforge model gc), or set DREAMFORGE_MODELS_DIR to a folder on another disk."


def require_room(folder: Path, needed: int) -> None:
    """Raise ``DiskFull`` unless so many bytes can be written to the folder's disk, and some are left."""
    free = shutil.disk_usage(folder).free
    if needed and needed + SPARE_BYTES > free:
        words = f"{_told(needed)} are needed in {folder}, where {_told(free)} are free"
        words = f"{words} and {_told(SPARE_BYTES)} stay free. {_ADVICE}"
        raise DiskFull(words, details={"needed_bytes": needed, "free_bytes": free, "spare_bytes": SPARE_BYTES})


@contextmanager
def disk_errors(folder: Path) -> Generator[None]:
    """Turn "no room" into ``DiskFull``."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        free = shutil.disk_usage(folder).free
        words = f"The disk of {folder} is full: {_told(free)} are free. {_ADVICE}"
        raise DiskFull(words, details={"free_bytes": free}) from error


def _told(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
