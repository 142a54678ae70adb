"""Files of models, on their way into the object store, where nodes fetch them from."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from dreamforge.blobs import Blobs
from dreamforge.errors import ModelCorrupt
from dreamforge.models.descriptor import ModelFile
from dreamforge.models.object_keys import model_file_key

OnSent = Callable[[str, int, int], None]
"""Told of a file's path, of bytes that were sent of it, and of how many it has."""


class Publisher:
    """Sends files to the object store, each once. Raises ``StorageUnavailable`` while that is away."""

    def __init__(self, *, blobs: Blobs) -> None:
        self._blobs = blobs

    def publish(
        self,
        files: Iterable[tuple[Path, ModelFile]],
        *,
        on_bytes: OnSent = lambda *_: None,
        check: Callable[[], None] = lambda: None,
        again: bool = False,
    ) -> int:
        """Have these files, where they lie and what they must be, in the object store; the bytes that were sent.

        What is there already, in the right size, is not sent, but for ``again``. ``check`` may end it. Raises
        ``ModelCorrupt`` for a file that is not what it should be: it is not stored.
        """
        sent = 0
        for path, file in files:
            check()
            if again or self._blobs.size_of(model_file_key(file.sha256)) != file.size:
                self._send(path, file, on_bytes=on_bytes, check=check)
                sent += file.size
            on_bytes(file.path, file.size, file.size)
        return sent

    def has(self, files: Iterable[ModelFile]) -> bool:
        """True when all of these are in the object store."""
        return all(self._blobs.size_of(model_file_key(file.sha256)) == file.size for file in files)

    def _send(self, path: Path, file: ModelFile, *, on_bytes: OnSent, check: Callable[[], None]) -> None:
        try:
            with path.open("rb", buffering=0) as stream:
                sending = _Sending(stream, file, on_bytes=on_bytes, check=check)
                self._blobs.put_file(model_file_key(file.sha256), sending, size=file.size)
        except FileNotFoundError as error:
            raise ModelCorrupt(f"{file.path} is gone from {path.parent}.", details={"file": file.path}) from error


class _Sending:
    """A file that is being sent. The last read raises unless all was what it should be: then nothing is stored."""

    def __init__(self, stream: BinaryIO, file: ModelFile, *, on_bytes: OnSent, check: Callable[[], None]) -> None:
        self._stream = stream
        self._file = file
        self._on_bytes = on_bytes
        self._check = check
        self._digest = hashlib.sha256()
        self._done = 0

    def read(self, most: int = -1) -> bytes:
        """The next bytes."""
        self._check()
        data = self._stream.read(most)
        self._digest.update(data)
        self._done += len(data)
        is_short = not data and self._done < self._file.size
        if is_short or (self._done >= self._file.size and self._digest.hexdigest() != self._file.sha256):
            raise ModelCorrupt(f"{self._file.path} is not what it was.", details={"file": self._file.path})
        self._on_bytes(self._file.path, self._done, self._file.size)
        return data
