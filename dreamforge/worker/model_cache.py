"""The models that a node has fetched: one folder of its own disk, which all steps of the node share.

    <root>/…                                 a `Shelf`: blobs, partial files, models
    <root>/entries/<key>.json                a model that is here, or on its way: whose it is, and its files
    <root>/entries/<key>.lock                shared by the steps that use it, by flock(2); its time is the last use

What the entries say is changed under `entries/.mutex` alone. The kernel lets go of all of them when a step's process
ends, however it does. File locks need a disk of the node's own: on some network file systems they do nothing.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreamforge.errors import NodeError, reason_of
from dreamforge.models.shelf import Shelf, sync_file, sync_folder
from dreamforge.store.companions import StepFile, StepModel

log = logging.getLogger(__name__)

_MUTEX = ".mutex"
_POLL_SECONDS = 0.05
_LEAST_FREE = 512 * 1024 * 1024
"""Bytes of the disk that are left to others."""
_CHUNK = 4 * 1024 * 1024


@dataclass(frozen=True)
class Entry:
    """A model that is in the cache, or on its way there. ``folder`` is relative to the root; sizes are by sha256."""

    model_id: uuid.UUID
    reference: str
    folder: str
    sizes: dict[str, int]


@dataclass(frozen=True)
class Holding:
    """What came of making room: the models that had to go, and the bytes that are kept beyond the limit all the same,
    because steps use them.
    """

    evicted: tuple[Entry, ...]
    excess: int


class ModelCache:
    """The cache of one node. ``size``: bytes that it may take; None for what the disk has.

    ``check`` is called again and again in waits, and raises what is to end them. Raises ``NodeError`` where the disk
    does not do what is asked of it.
    """

    def __init__(self, *, shelf: Shelf, size: int | None, check: Callable[[], None] = lambda: None) -> None:
        self.shelf = shelf
        self._size = size
        self._check = check
        self._entries = shelf.root / "entries"

    @contextmanager
    def hold(self, models: Sequence[StepModel]) -> Generator[Holding]:
        """Keep these where they are, or on their way, for the length of the block, and make room for what is missing.

        The least recently used go first, never one that is held. What the limit does not allow is kept all the same:
        the disk's own end is seen to by whoever fetches.
        """
        with ExitStack() as locks:
            with self._mutex():
                for model in models:
                    descriptor = self._open_lock(_key(model), fcntl.LOCK_SH)
                    if descriptor is None:
                        raise NodeError("The model cache is held by another program.")
                    locks.callback(os.close, descriptor)
                    self._describe(model)
                holding = self._make_room(models)
            yield holding

    def find(self, model: StepModel) -> Path | None:
        """Where the model is, when it is here whole."""
        folder = self._folder(model)
        with _disk_errors():
            return folder if all(_has_size(folder / file.path, file.size) for file in model.files) else None

    def missing(self, model: StepModel) -> tuple[StepFile, ...]:
        """Its files that are not here, each content once."""
        by_content = {file.sha256: file for file in model.files}
        with _disk_errors():
            return tuple(file for file in by_content.values() if not self.shelf.has(file.sha256, file.size))

    def assemble(self, model: StepModel) -> Path | None:
        """Put the model together from files that are here; None when one has gone meanwhile. It is held."""
        with self._mutex():
            folder = self._folder(model)
            if self.find(model) is None:
                if self.missing(model):
                    return None
                with self.shelf.staging() as staged:
                    for file in model.files:
                        self.shelf.link(file.sha256, staged / file.path)
                    self.shelf.put(staged, folder)
            return folder

    def drop_damaged(self, model: StepModel) -> bool:
        """Read all of a held model again, and drop what is not what it should be; True when something was dropped."""
        with _disk_errors():
            damaged = [file for file in model.files if self._digest(self._folder(model) / file.path) != file.sha256]
        if not damaged:
            return False
        with self._mutex():
            self._remove_folder(self._folder(model))
            for file in damaged:
                self.shelf.blob(file.sha256).unlink(missing_ok=True)
        log.warning("a cached model was damaged", extra={"model": model.reference, "files": len(damaged)})
        return True

    def _make_room(self, models: Sequence[StepModel]) -> Holding:
        held = {_key(model) for model in models}
        needed = sum({file.sha256: file.size for model in models for file in self.missing(model)}.values())
        known = self._known()
        evicted: list[Entry] = []
        for key in sorted(known.keys() - held, key=self._last_used):
            if self._excess(known, needed) <= 0:
                break
            if self._evict(key, known):
                evicted.append(known.pop(key))
        return Holding(tuple(evicted), excess=max(0, _taken(known) - (self._size or _taken(known))))

    def _excess(self, known: dict[str, Entry], needed: int) -> int:
        """Bytes that have to go. The models that are held count in full, also what is still missing of them."""
        beyond_limit = 0 if self._size is None else _taken(known) - self._size
        lacking = needed + _LEAST_FREE - shutil.disk_usage(self.shelf.root).free if needed else 0
        return max(beyond_limit, lacking)

    def _evict(self, key: str, known: dict[str, Entry]) -> bool:
        """Remove a model, and the files that no other has; False for one that is in use."""
        descriptor = self._open_lock(key, fcntl.LOCK_EX)
        if descriptor is None:
            return False
        try:
            entry = known[key]
            self._remove_folder(self.shelf.root / entry.folder)
            kept = {sha256 for other, its in known.items() if other != key for sha256 in its.sizes}
            for sha256 in entry.sizes.keys() - kept:
                self._remove_blob(sha256)
            for suffix in ("json", "lock"):
                self._path(key, suffix).unlink(missing_ok=True)
        finally:
            os.close(descriptor)
        log.info("a model left the cache", extra={"model": entry.reference, "bytes": sum(entry.sizes.values())})
        return True

    def _remove_folder(self, folder: Path) -> None:
        # By one rename: nobody finds half of it.
        with self.shelf.staging() as staged, suppress(FileNotFoundError):
            folder.rename(staged / "old")

    def _remove_blob(self, sha256: str) -> None:
        blob = self.shelf.blob(sha256)
        with suppress(FileNotFoundError):
            # Where another folder has it too it takes no more room, and may be somebody's who is not known here.
            if blob.stat().st_nlink == 1:
                blob.unlink()
        for left in self.shelf.partial(f"sha256-{sha256}").parent.glob(f"sha256-{sha256}.part*"):
            left.unlink(missing_ok=True)

    def _known(self) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for path in self._entries.glob("*.json"):
            try:
                found[path.stem] = _entry(json.loads(path.read_text()))
            except (OSError, ValueError, TypeError, KeyError):
                # It was not written to its end: the model is described anew when it is used.
                path.unlink(missing_ok=True)
        return found

    def _describe(self, model: StepModel) -> None:
        entry = Entry(
            model_id=model.id,
            reference=model.reference,
            folder=self._folder(model).relative_to(self.shelf.root).as_posix(),
            sizes={file.sha256: file.size for file in model.files},
        )
        path, told = self._path(_key(model), "json"), json.dumps({**asdict(entry), "model_id": str(model.id)})
        if path.exists() and path.read_text() == told:
            return
        written = path.with_suffix(".new")
        written.write_text(told)
        # What nothing describes after a power cut would take its room for ever.
        sync_file(written)
        written.replace(path)
        sync_folder(path.parent)

    def _open_lock(self, key: str, how: int) -> int | None:
        """The lock of a model, taken at once and marked as used; None when somebody stands against it."""
        descriptor = os.open(self._path(key, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if how == fcntl.LOCK_SH:
            os.utime(descriptor)
        return descriptor

    def _last_used(self, key: str) -> float:
        try:
            return self._path(key, "lock").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    @contextmanager
    def _mutex(self) -> Generator[None]:
        with _disk_errors():
            self._entries.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._entries / _MUTEX, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                while not _is_locked(descriptor):
                    self._check()
                    time.sleep(_POLL_SECONDS)
                self._clean_up()
                yield
            finally:
                os.close(descriptor)

    def _clean_up(self) -> None:
        """Remove what steps that were killed have left half done, which nobody else does meanwhile."""
        for left in (self.shelf.root / "partial").glob("model-*"):
            shutil.rmtree(left, ignore_errors=True)

    def _digest(self, path: Path) -> str | None:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
        try:
            with path.open("rb", buffering=0) as stream:
                while count := stream.readinto(buffer):
                    digest.update(buffer[:count])
                    self._check()
        except FileNotFoundError:
            return None
        return digest.hexdigest()

    def _folder(self, model: StepModel) -> Path:
        # By its content: a name may have stood for something else before.
        return self.shelf.folder_of(model.kind, model.name, f"{model.version}-{_content(model)}")

    def _path(self, key: str, suffix: str) -> Path:
        return self._entries / f"{key}.{suffix}"


def _entry(told: dict[str, Any]) -> Entry:
    return Entry(uuid.UUID(told["model_id"]), str(told["reference"]), str(told["folder"]), dict(told["sizes"]))


def _key(model: StepModel) -> str:
    return hashlib.sha256(f"{model.kind}/{model.reference}/{_content(model)}".encode()).hexdigest()[:32]


def _content(model: StepModel) -> str:
    lines = "\n".join(f"{file.sha256} {file.size} {file.path}" for file in model.files)
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def _taken(known: dict[str, Entry]) -> int:
    by_content: dict[str, int] = {}
    for entry in known.values():
        by_content |= entry.sizes
    return sum(by_content.values())


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextmanager
def _disk_errors() -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise NodeError("The model cache on this node cannot be used.", details=reason_of(error)) from error
