"""A download on its way: bytes go to a `.part` file, which takes the target's name only when it is whole."""

import errno
import hashlib
import os
import secrets
from pathlib import Path
from typing import Self

from dreamforge.client.errors import ChecksumMismatch

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class PartFile:
    """The unfinished file beside ``target``, from ``with`` to the end of the block; none is left behind it."""

    def __init__(self, target: Path) -> None:
        self._target = target
        # Two that download to one target do not write into each other's file.
        self._path = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")

    def __enter__(self) -> Self:
        self._stream = self._path.open("xb")
        self._digest = hashlib.sha256()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._path.unlink(missing_ok=True)

    def restart(self) -> None:
        """Begin again with nothing."""
        self._stream.seek(0)
        self._stream.truncate()
        self._digest = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        """Add bytes."""
        self._stream.write(chunk)
        self._digest.update(chunk)

    def publish(self, *, checksum: str, overwrite: bool) -> None:
        """Give the file its name.

        Raises ``ChecksumMismatch``, and ``FileExistsError`` when the target is there and must not be overwritten.
        """
        received = f"sha256:{self._digest.hexdigest()}"
        if received != checksum:
            raise ChecksumMismatch(expected=checksum, received=received)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        if overwrite:
            self._path.replace(self._target)
        else:
            self._link()

    def _link(self) -> None:
        # A link fails when the name is taken; a rename would replace what is there.
        try:
            self._target.hardlink_to(self._path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if self._target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self._target)) from error
            self._path.rename(self._target)
