"""A model's folder: its files with their hashes."""

import hashlib
from pathlib import Path

from dreamforge.errors import ModelCorrupt
from dreamforge.models.descriptor import ModelFile

DESCRIPTOR_NAME = "descriptor.json"


def hash_folder(folder: Path) -> tuple[ModelFile, ...]:
    """Every file of the folder but the descriptor, sorted by path. Raises ``ModelCorrupt`` for an empty one."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DESCRIPTOR_NAME)
    if not paths:
        raise ModelCorrupt(f"There are no files in the model's folder {folder.name!r}.")
    return tuple(_hash_file(path, folder) for path in paths)


def checkpoint_hash(files: tuple[ModelFile, ...]) -> str:
    """The hash of a model in several files: the sha256 of its files' sorted hashes."""
    return hashlib.sha256("\n".join(sorted(file.sha256 for file in files)).encode()).hexdigest()


def _hash_file(path: Path, folder: Path) -> ModelFile:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return ModelFile(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=digest)
