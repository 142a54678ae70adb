"""The file on the disk that is not whole yet."""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from dreamforge.errors import DiskFull, NodeError, reason_of

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class PartFile:
    """Written to by several threads at their own places. Raises ``DiskFull``, and ``NodeError`` for other trouble."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors():
            # A link that somebody has put there leads nowhere.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(path, flags, 0o666)

    def close(self) -> None:
        """Nobody may be reading or writing."""
        os.close(self._descriptor)

    @property
    def size(self) -> int:
        """Where it ends: it may have holes."""
        return os.fstat(self._descriptor).st_size

    def write(self, data: bytes, place: int) -> None:
        """Have all of the data there."""
        with disk_errors():
            left = memoryview(data)
            while left:
                count = os.pwrite(self._descriptor, left, place)
                left, place = left[count:], place + count

    def read(self, buffer: memoryview, place: int) -> int:
        """Fill the buffer with what lies there; how many bytes that are."""
        with disk_errors():
            return os.preadv(self._descriptor, [buffer], place)

    def cut(self, size: int) -> None:
        """Have it end there."""
        with disk_errors():
            os.ftruncate(self._descriptor, size)

    def sync_data(self) -> None:
        """Have what was written so far on the disk."""
        with disk_errors():
            os.fdatasync(self._descriptor)

    def sync(self) -> None:
        """Have all of it on the disk, and what the system knows of it."""
        with disk_errors():
            os.fsync(self._descriptor)

    def require_room(self, size: int, *, spare: int) -> None:
        """Raise ``DiskFull`` unless a file of this size goes onto the disk and leaves ``spare`` bytes free."""
        needed = max(0, size - os.fstat(self._descriptor).st_blocks * 512)
        free = self._free()
        if needed + spare > free:
            raise _full(needed=needed, free=free, spare=spare)

    def _free(self) -> int:
        found = os.fstatvfs(self._descriptor)
        return found.f_bavail * found.f_frsize


@contextmanager
def disk_errors() -> Generator[None]:
    """What a disk can say, as errors of ours."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(
                "The disk for models is full, or a quota is used up: make room and repeat the command.",
                details=reason_of(error),
            ) from error
        raise NodeError(f"The download cannot be written: {error.strerror}.", details=reason_of(error)) from error


def _full(*, needed: int, free: int, spare: int) -> DiskFull:
    return DiskFull(
        f"The disk for models has {_told(free)} free. The download takes {_told(needed)} more, and {_told(spare)} stay "
        "free: make room and repeat the command.",
        details={"needed_bytes": needed, "free_bytes": free, "spare_bytes": spare},
    )


def _told(count: int) -> str:
    return f"{count / 1024**3:,.1f} GiB" if count >= 1024**3 else f"{count / 1024**2:,.1f} MiB"
