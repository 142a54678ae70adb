"""A model's files with their hashes."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from dreamforge.errors import ModelCorrupt
from dreamforge.models.descriptor import ModelFile

DESCRIPTOR_NAME = "descriptor.json"
MOST_FILES = 10_000

_CHUNK = 4 * 1024 * 1024

OnBytes = Callable[[int, int], None]
"""Told of bytes that were read, and of how many there are."""


@dataclass(frozen=True)
class FoundFile:
    """A file as it was found. ``name`` is relative to the model's folder; ``mark`` changes when the file does."""

    path: Path
    name: str
    size: int
    mark: tuple[int, int, int]


def find_file(path: Path, *, name: str | None = None) -> FoundFile:
    """The file as it is now. Raises ``ModelCorrupt`` for what is no ordinary file, or a link to one."""
    name = name or path.name
    try:
        name.encode()
        found = path.stat()
    except UnicodeEncodeError as error:
        raise ModelCorrupt(f"{name.encode(errors='replace')!r} is no name in UTF-8.") from error
    except FileNotFoundError as error:
        # The link is there, what it leads to is not.
        raise ModelCorrupt(f"{name} leads to nothing.", details={"file": name}) from error
    if not stat.S_ISREG(found.st_mode):
        raise ModelCorrupt(f"{name} is no ordinary file.", details={"file": name})
    return FoundFile(path=path, name=name, size=found.st_size, mark=(found.st_ino, found.st_size, found.st_mtime_ns))


def find_files(folder: Path) -> tuple[FoundFile, ...]:
    """Every file of the folder but the descriptor and what is hidden, sorted by path.

    Links are followed: the cache of huggingface_hub is made of them. Raises ``ModelCorrupt`` for an empty folder, one
    with more than ``MOST_FILES``, and one with something that is no file.
    """
    found: list[FoundFile] = []
    for path in _walk(folder):
        found.append(find_file(path, name=path.relative_to(folder).as_posix()))
        if len(found) > MOST_FILES:
            raise ModelCorrupt(f"The folder {folder.name!r} has more than {MOST_FILES} files: it is no model's.")
    if not found:
        raise ModelCorrupt(f"There are no files in the model's folder {folder.name!r}.")
    return tuple(sorted(found, key=lambda file: file.path))


def hash_files(
    found: Sequence[FoundFile],
    *,
    known: Mapping[Path, ModelFile] = MappingProxyType({}),
    on_bytes: OnBytes | None = None,
) -> tuple[ModelFile, ...]:
    """The files with their hashes. Raises ``ModelCorrupt`` when one is no longer as it was found.

    ``known``: those that somebody has just hashed, who saw to it that they stay as they are. They are not read again.
    """
    unread = [file for file in found if not is_known(file, known)]
    reading = _Reading(total=sum(file.size for file in unread), on_bytes=on_bytes)
    return tuple(
        replace(known[file.path], path=file.name) if is_known(file, known) else reading.hash(file)[0] for file in found
    )


def is_known(file: FoundFile, known: Mapping[Path, ModelFile]) -> bool:
    """True for a file whose hash is among these."""
    return file.path in known and known[file.path].size == file.size


def hash_with_tensors(file: FoundFile, *, data_offset: int, on_bytes: OnBytes | None = None) -> tuple[ModelFile, str]:
    """The file with its hash, and the sha256 of its tensors alone, which begin at ``data_offset``.

    The latter is what A1111's web UI knows a LoRA by: `Lora hashes` has its first 12 digits (`addnet_hash_safetensors`
    in its modules/hashes.py, `shorthash` in its extensions-builtin/Lora/network.py). kohya's scripts write it into a
    LoRA's metadata as `sshs_model_hash`.
    """
    return _Reading(total=file.size, on_bytes=on_bytes).hash(file, data_offset=data_offset)


def hash_folder(folder: Path) -> tuple[ModelFile, ...]:
    """The files of ``find_files`` with their hashes."""
    return hash_files(find_files(folder))


def checkpoint_hash(files: tuple[ModelFile, ...]) -> str:
    """The hash of a model in several files: the sha256 of its files' sorted hashes."""
    return hashlib.sha256("\n".join(sorted(file.sha256 for file in files)).encode()).hexdigest()


class _Reading:
    """One pass over files."""

    def __init__(self, *, total: int, on_bytes: OnBytes | None) -> None:
        self._total = total
        self._done = 0
        self._on_bytes = on_bytes
        self._buffer = memoryview(bytearray(_CHUNK))

    def hash(self, file: FoundFile, *, data_offset: int = 0) -> tuple[ModelFile, str]:
        """The file with its hash, and the hash of what is behind ``data_offset``."""
        whole, tensors = hashlib.sha256(), hashlib.sha256()
        place = 0
        with file.path.open("rb", buffering=0) as stream:
            while (count := stream.readinto(self._buffer)) and place <= file.size:
                whole.update(self._buffer[:count])
                if data_offset:
                    tensors.update(self._buffer[min(count, max(0, data_offset - place)) : count])
                place += count
                self._tell(count)
        if find_file(file.path, name=file.name).mark != file.mark:
            raise ModelCorrupt(
                f"{file.name} changed while it was read: wait until it is whole.",
                details={"file": file.name, "reason": "changed"},
            )
        return ModelFile(path=file.name, size=file.size, sha256=whole.hexdigest()), tensors.hexdigest()

    def _tell(self, count: int) -> None:
        self._done += count
        if self._on_bytes:
            self._on_bytes(self._done, self._total)


def _walk(folder: Path) -> Iterator[Path]:
    walked: set[str] = set()
    for above, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(above)
        # A link may lead back up.
        folders[:] = [] if real in walked else [name for name in folders if not name.startswith(".")]
        if real not in walked:
            yield from (Path(above, name) for name in names if name != DESCRIPTOR_NAME and not name.startswith("."))
        walked.add(real)
