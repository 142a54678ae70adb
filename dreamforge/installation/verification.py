"""Whether the files of an installed model are what they were, and how they become so again."""

import contextlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from dreamforge.errors import DreamForgeError, ModelCorrupt, SourceError, SourceNotFound, StorageUnavailable
from dreamforge.installation.disk import disk_errors
from dreamforge.installation.fetcher import OnWait, ShelfFetcher
from dreamforge.installation.holding import waited_for
from dreamforge.installation.whereabouts import files_at
from dreamforge.installation.workshop import Workshop, install_key
from dreamforge.models.descriptor import ModelFile
from dreamforge.models.files import find_file, hash_files
from dreamforge.models.object_keys import model_file_key
from dreamforge.models.remote import Location, RemoteFile, RemoteModel
from dreamforge.models.sources.source import ModelSource
from dreamforge.store.model_contents import ModelContent

_PRESIGNED_SECONDS = 3600

OnRead = Callable[[str, int, int], None]
"""Told of a file's path, of bytes that were read or brought of it, and of how many it has."""


class FileState(StrEnum):
    """What became of a file."""

    OK = "ok"
    REPAIRED = "repaired"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class VerifiedFile:
    """One file. ``problem``: what is, or was, wrong with it; ``repaired_from``: `object store` or the source."""

    path: str
    state: FileState
    problem: str | None = None
    repaired_from: str | None = None


@dataclass(frozen=True)
class VerifiedModel:
    """A model's files, all of them."""

    reference: str
    files: tuple[VerifiedFile, ...]

    @property
    def state(self) -> FileState:
        """The worst of its files'."""
        states = {file.state for file in self.files}
        return next((state for state in (FileState.DAMAGED, FileState.REPAIRED) if state in states), FileState.OK)


class Verifier:
    """Reads every byte of installed models. What lies in the models' folder is repaired; elsewhere nothing is written.

    ``check`` may end it. A file that several models share is read once.
    """

    def __init__(
        self,
        *,
        workshop: Workshop,
        check: Callable[[], None] = lambda: None,
        on_wait: OnWait = lambda *_: None,
    ) -> None:
        self._workshop = workshop
        self._check = check
        self._on_wait = on_wait
        self._read: dict[tuple[int, ...], str] = {}

    def verify(self, content: ModelContent, *, on_read: OnRead = lambda *_: None) -> VerifiedModel:
        """Compare the model's files with what the registry has, and bring anew those that are not the same."""
        found = [(path, file, self._problem(path, file, on_read)) for path, file in files_at(content)]
        if any(problem for *_, problem in found):
            with waited_for(
                self._workshop.leases,
                self._workshop.shelf.place(),
                install_key(content.name, content.version),
                owner=self._workshop.owner,
                check=self._check,
                on_wait=lambda other: self._on_wait(content.reference, other.owner, other.bytes_done, other.size),
            ):
                mending = _Mending(self._workshop, content, lambda: self._fetcher(on_read), is_right=self._is_right)
                files = tuple(mending.mended(path, file, problem) for path, file, problem in found)
        else:
            files = tuple(VerifiedFile(file.path, FileState.OK) for _, file, _ in found)
        return VerifiedModel(content.reference, files)

    def _fetcher(self, on_read: OnRead) -> ShelfFetcher:
        def on_bytes(path: str, done: int, total: int | None) -> None:
            on_read(path, done, total or done)

        return self._workshop.fetcher(check=self._check, on_bytes=on_bytes, on_wait=self._on_wait)

    def _is_right(self, path: Path, file: ModelFile) -> bool:
        return self._problem(path, file) is None

    def _problem(self, path: Path, file: ModelFile, on_read: OnRead = lambda *_: None) -> str | None:
        def on_bytes(done: int, total: int) -> None:
            self._check()
            on_read(file.path, done, total)

        try:
            found = find_file(path, name=file.path)
            if found.size != file.size:
                return f"has {found.size} bytes of {file.size}"
            as_found = (path.stat().st_dev, *found.mark)
            if as_found not in self._read:
                self._read[as_found] = hash_files([found], on_bytes=on_bytes)[0].sha256
            return None if self._read[as_found] == file.sha256 else "has other bytes than it had"
        except ModelCorrupt as error:
            return "is gone" if not path.exists() else error.message
        except OSError as error:
            return f"cannot be read: {error.strerror}"


class _Mending:
    """The repair of one model, under its lease."""

    def __init__(
        self,
        workshop: Workshop,
        content: ModelContent,
        new_fetcher: Callable[[], ShelfFetcher],
        *,
        is_right: Callable[[Path, ModelFile], bool],
    ) -> None:
        self._workshop = workshop
        self._content = content
        # One for each file: after a failure it brings nothing more.
        self._new_fetcher = new_fetcher
        self._is_right = is_right
        self._resolved: tuple[ModelSource, RemoteModel] | None = None

    def mended(self, path: Path, file: ModelFile, problem: str | None) -> VerifiedFile:
        """The file as it is in the end."""
        if problem is None:
            return VerifiedFile(file.path, FileState.OK)
        if not path.is_relative_to(self._workshop.shelf.root):
            words = "it lies outside of the models' folder, where nothing is written: put it back, or import it again"
            return VerifiedFile(file.path, FileState.DAMAGED, f"{problem}; {words}")
        try:
            origin = self._have(file)
            self._replace(path, file)
        except (DreamForgeError, OSError) as error:
            why = error.message if isinstance(error, DreamForgeError) else str(error.strerror)
            return VerifiedFile(file.path, FileState.DAMAGED, f"{problem}, and is not to be had: {why}")
        return VerifiedFile(file.path, FileState.REPAIRED, problem, origin)

    def _have(self, file: ModelFile) -> str:
        """Have the right file among the blobs; where it came from."""
        shelf = self._workshop.shelf
        if shelf.has(file.sha256):
            if self._is_right(shelf.blob(file.sha256), file):
                return "the models' folder"
            shelf.drop(file.sha256)
        # What the store has may be gone, or be damaged too: the source is there for that.
        with contextlib.suppress(StorageUnavailable, SourceError):
            blobs = self._workshop.blobs
            key = model_file_key(file.sha256)
            if blobs is not None and blobs.size_of(key) == file.size:
                remote = RemoteFile(path=file.path, url=blobs.endpoint, size=file.size, sha256=file.sha256)
                self._new_fetcher().have(remote, lambda: Location(blobs.presign_internal(key, ttl=_PRESIGNED_SECONDS)))
                return "the object store"
        return self._from_source(file)

    def _from_source(self, file: ModelFile) -> str:
        source, model = self._resolved = self._resolved or self._resolve()
        offered = [
            remote for remote in model.files
            if file.sha256 == remote.sha256 or (remote.sha256 is None and remote.path == file.path)
        ]  # fmt: skip
        if not offered:
            raise SourceNotFound(f"{model.source_uri} has no such file any more.")
        remote = RemoteFile(path=file.path, url=offered[0].url, size=file.size, sha256=file.sha256)
        with self._workshop.shelf.staging() as staged:
            source.fetch_file(remote, staged / "file", fetcher=self._new_fetcher())
        return self._content.source_uri

    def _resolve(self) -> tuple[ModelSource, RemoteModel]:
        source = self._workshop.sources.source_for(self._content.source_uri)
        return source, source.resolve(self._content.source_uri)

    def _replace(self, path: Path, file: ModelFile) -> None:
        """Put the blob where the model's file is, in one step: whoever reads the old one reads on."""
        shelf = self._workshop.shelf
        with disk_errors(shelf.root):
            fresh = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
            try:
                shelf.link(file.sha256, fresh)
                fresh.replace(path)
            finally:
                # A rename of one link over another of the same file does nothing at all.
                fresh.unlink(missing_ok=True)
