"""Room on the disk and in shared memory: databases that run out of it stop."""

import os
import shutil
from pathlib import Path

from dreamforge.embedded.trouble import StackError

_LEAST_MIB = 500
_MIB = 1024 * 1024
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where glibc's shm_open() and Ray put it


def require_space(data_dir: Path) -> None:
    """Raise ``StackError`` when less than 500 MiB are free where the data lie."""
    if is_scarce(data_dir):
        raise StackError(
            f"Only {_free_mib(data_dir)} MiB are free for {data_dir}; {_LEAST_MIB} MiB are needed. "
            "Make room, or set DREAMFORGE_DATA_DIR to another disk."
        )


def require_space_for_ray(folder: Path) -> None:
    """Raise ``StackError`` when less than 500 MiB are free where Ray keeps its sessions, which no setting moves."""
    if is_scarce(folder):
        raise StackError(
            f"Only {_free_mib(folder)} MiB are free in {folder}, where Ray keeps its logs and sockets; "
            f"{_LEAST_MIB} MiB are needed. Make room there."
        )


def is_scarce(data_dir: Path) -> bool:
    """True while less than 500 MiB are free where the data lie."""
    return _free_mib(data_dir) < _LEAST_MIB


def shared_memory_is_usable(size: int) -> bool:
    """True when `/dev/shm` is there, ours to write to, and has ``size`` bytes free. Containers often give 64 MiB."""
    if not _SHARED_MEMORY.is_dir() or not os.access(_SHARED_MEMORY, os.W_OK):
        return False
    return shutil.disk_usage(_SHARED_MEMORY).free >= size


def _free_mib(folder: Path) -> int:
    return shutil.disk_usage(folder).free // _MIB
