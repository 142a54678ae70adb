"""What lies in the models' folder and in the object store, and nobody needs any more."""

import json
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from dreamforge.blobs import Blobs
from dreamforge.installation.workshop import Workshop, install_key
from dreamforge.models.description import KINDS
from dreamforge.models.files import DESCRIPTOR_NAME
from dreamforge.models.object_keys import MODEL_FILES
from dreamforge.models.shelf import Shelf
from dreamforge.store.downloads import DownloadLease

KEPT_FOR = timedelta(hours=24)
"""How old something has to be where nothing tells whether somebody is at work on it."""


class Waste(StrEnum):
    """What it is."""

    PARTIAL = "partial download"
    MODEL = "forgotten model"
    BLOB = "file of no model"
    OBJECT = "object of no model"


@dataclass(frozen=True)
class Garbage:
    """One thing to remove. ``name``: below the models' folder, or in the object store; ``key``: of the lease on it."""

    waste: Waste
    name: str
    size_bytes: int
    key: str | None = None


class Collector:
    """Finds what is of no use, and removes it. What somebody holds a lease on is left alone."""

    def __init__(self, *, workshop: Workshop, now: datetime) -> None:
        self._workshop = workshop
        self._shelf: Shelf = workshop.shelf
        self._now = now

    def here(self) -> list[Garbage]:
        """What may go from the models' folder. It takes the place that links between the files leave."""
        live = self._workshop.leases.live(self._shelf.place())
        unfinished = [found for found in self._unfinished() if found.key not in live]
        forgotten = [found for found in self._forgotten() if found.key not in live]
        gone = {self._shelf.root / found.name for found in (*unfinished, *forgotten)}
        return [*unfinished, *forgotten, *self._unlinked(gone)]

    def stored(self, blobs: Blobs) -> list[Garbage]:
        """What may go from the object store. Raises ``StorageUnavailable``."""
        named = {file.sha256 for model in self._workshop.registry.installed() for file in model.files}
        return [
            Garbage(Waste.OBJECT, found.key, found.size_bytes)
            for found in blobs.list(MODEL_FILES)
            if found.key.removeprefix(MODEL_FILES) not in named and self._now - found.changed_at > KEPT_FOR
        ]

    def remove(self, garbage: Garbage) -> bool:
        """Remove it, unless somebody has come to need it meanwhile; True when it is gone."""
        if garbage.waste is Waste.OBJECT:
            return self._remove_object(garbage)
        path = self._shelf.root / garbage.name
        if garbage.waste is Waste.BLOB:
            if path.exists() and path.stat().st_nlink > 1 and self._is_linked(path):
                return False
            path.unlink(missing_ok=True)
            return True
        with self._leased(garbage) as is_ours:
            if not is_ours or (garbage.waste is Waste.MODEL and not self._is_forgotten(path)):
                return False
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        return True

    def tidy(self) -> None:
        """Remove what takes no room: leases of the dead, names of files that are gone, empty folders."""
        self._workshop.leases.forget_ended(self._shelf.place())
        for alias in self._shelf.aliases():
            if not self._shelf.has(alias.read_text().strip()):
                alias.unlink(missing_ok=True)

    def _unfinished(self) -> Iterator[Garbage]:
        for path in sorted(self._shelf.unfinished()):
            size = sum(_size(file) for file in path.rglob("*")) if path.is_dir() else _size(path)
            key = self._shelf.key_of(path)
            if path.is_dir() and not key.startswith("install-") and self._is_young(path):
                # No lease tells of those that have no name.
                continue
            yield Garbage(Waste.PARTIAL, self._name(path), size, key)

    def _forgotten(self) -> Iterator[Garbage]:
        for kind in KINDS.values():
            for folder in sorted((self._shelf.root / kind).glob("*@*")):
                # A link is a person's own; no installation makes one.
                if folder.is_dir() and not folder.is_symlink() and self._is_forgotten(folder):
                    name, _, version = folder.name.rpartition("@")
                    yield Garbage(Waste.MODEL, self._name(folder), _own_size(folder), install_key(name, version))

    def _is_forgotten(self, folder: Path) -> bool:
        """True for a folder that was made by an installation, and whose model nobody knows."""
        name, _, version = folder.name.rpartition("@")
        known = self._workshop.registry.content_of(name=name, version=version)
        if known is not None and known.installed and known.kind == folder.parent.name:
            return False
        try:
            return "reference" in json.loads((folder / DESCRIPTOR_NAME).read_text())
        except (OSError, ValueError):
            return False

    def _unlinked(self, gone: set[Path]) -> Iterator[Garbage]:
        kept = {
            (found.st_dev, found.st_ino)
            for found in (path.stat() for path in self._shelf.linked() if not gone.intersection(path.parents))
        }
        for blob in sorted(self._shelf.blobs()):
            found = blob.stat()
            if (found.st_dev, found.st_ino) not in kept:
                yield Garbage(Waste.BLOB, self._name(blob), _size(blob))

    def _is_linked(self, blob: Path) -> bool:
        return any(path.samefile(blob) for path in self._shelf.linked())

    def _remove_object(self, garbage: Garbage) -> bool:
        blobs = self._workshop.blobs
        if blobs is None:
            return False
        sha256 = garbage.name.removeprefix(MODEL_FILES)
        return self._workshop.registry.unless_needed(sha256, lambda: blobs.remove([garbage.name]))

    @contextmanager
    def _leased(self, garbage: Garbage) -> Generator[bool]:
        leases = self._workshop.leases
        taken = leases.take(self._shelf.place(), str(garbage.key), owner=self._workshop.owner)
        if not isinstance(taken, DownloadLease):
            yield False
            return
        try:
            yield True
        finally:
            leases.give_back(taken)

    def _is_young(self, path: Path) -> bool:
        return self._now.timestamp() - path.stat().st_mtime < KEPT_FOR.total_seconds()

    def _name(self, path: Path) -> str:
        return path.relative_to(self._shelf.root).as_posix()


def _size(path: Path) -> int:
    """Bytes on the disk: a file that is not whole yet may have holes."""
    found = path.lstat()
    return min(found.st_size, found.st_blocks * 512)


def _own_size(folder: Path) -> int:
    """Bytes that go with the folder alone; files that the blobs have too are counted there."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sum(_size(path) for path in files if path.stat().st_nlink == 1)
