"""The hashes of a file that is still coming: a thread of its own reads what was written, behind the others."""

import hashlib
import threading
from dataclasses import dataclass

from dreamforge.errors import NodeError
from dreamforge.models.download.ledger import Ledger
from dreamforge.models.download.part_file import PartFile

_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class Hashes:
    """In hex. ``git_sha1``: of a blob of git, `sha1("blob <size>\\0" + bytes)`: see `git hash-object`."""

    sha256: str
    git_sha1: str | None


class Digest:
    """Reads what lies in the file, from its beginning to the first byte that is missing, again and again.

    A hash cannot be written down half done: the next process reads again what is there, while the rest is coming.
    """

    def __init__(self, part: PartFile, ledger: Ledger, *, has_git_sha1: bool) -> None:
        self._part = part
        self._ledger = ledger
        self._has_git_sha1 = has_git_sha1
        self._buffer = memoryview(bytearray(_CHUNK))
        self._lock = threading.Lock()
        self._began = 0
        self._start()

    def _start(self) -> None:
        self._place = 0
        self._sha256 = hashlib.sha256()
        self._git_sha1 = hashlib.sha1(usedforsecurity=False) if self._has_git_sha1 else None

    def begin_anew(self) -> None:
        """What was read so far counts for nothing."""
        with self._lock:
            self._began += 1
            self._start()

    def advance(self) -> bool:
        """Read what is next; False when there is nothing yet."""
        size = self._ledger.size
        with self._lock:
            began, place = self._began, self._place
        most = min(self._ledger.frontier - place, _CHUNK)
        # Git begins with the size.
        if size is None or most <= 0:
            return False
        count = self._part.read(self._buffer[:most], place)
        with self._lock:
            if began == self._began:
                self._add(self._buffer[:count], size)
        if count == 0:
            raise NodeError("The download was cut off on the disk by another process: repeat the command.")
        return True

    def _add(self, data: memoryview, size: int) -> None:
        if self._git_sha1 is not None:
            if self._place == 0:
                self._git_sha1.update(b"blob %d\0" % size)
            self._git_sha1.update(data)
        self._sha256.update(data)
        self._place += len(data)

    @property
    def place(self) -> int:
        """How far it has come."""
        return self._place

    def hashes(self) -> Hashes:
        """Of all that was read."""
        if self._git_sha1 is not None and self._place == 0:
            self._git_sha1.update(b"blob 0\0")
        return Hashes(self._sha256.hexdigest(), self._git_sha1.hexdigest() if self._git_sha1 else None)
