"""One model, put together while nobody else does the same: fetched, inspected, placed, published, registered."""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from dreamforge.errors import StorageUnavailable
from dreamforge.installation.configs import take_in, with_config
from dreamforge.installation.disk import disk_errors, require_room
from dreamforge.installation.fetcher import ShelfFetcher
from dreamforge.installation.holding import HeldLease
from dreamforge.installation.model_import import registration
from dreamforge.installation.observer import Observer, Phase
from dreamforge.installation.request import Installation, InstallRequest
from dreamforge.installation.whereabouts import conflict_with, descriptor_of, files_at
from dreamforge.installation.workshop import Workshop
from dreamforge.models.descriptor import ModelDescriptor, ModelFile
from dreamforge.models.files import DESCRIPTOR_NAME
from dreamforge.models.inspection import Inspection, inspect
from dreamforge.models.remote import RemoteFile, RemoteModel
from dreamforge.models.safetensors_header import read_header
from dreamforge.models.shelf import sync_file
from dreamforge.models.sources.source import ModelSource
from dreamforge.store.model_contents import PUBLISHED_AT, ModelContent
from dreamforge.store.models import Registered


@dataclass(frozen=True)
class _Published:
    at: str | None = None
    warnings: tuple[str, ...] = ()


class Assembly:
    """Makes ``model`` the one of this name and version. ``key``: of the lease ``held``, and of the folder to work in.

    ``check`` raises what is to end it, a lost lease too.
    """

    def __init__(
        self,
        *,
        workshop: Workshop,
        request: InstallRequest,
        model: RemoteModel,
        name: str,
        version: str,
        observer: Observer,
        held: HeldLease,
        key: str,
        check: Callable[[], None],
    ) -> None:
        self._workshop = workshop
        self._request = request
        self._model = model
        self._name, self._version = name, version
        self._observer = observer
        self._held = held
        self._key = key
        self._check = check
        self._done: dict[str, int] = {}
        self._lock = threading.Lock()

    def assemble(self, source: ModelSource, known: ModelContent | None, *, warnings: tuple[str, ...]) -> Installation:
        """Have the model installed and registered; ``known`` is what the registry has by its name now."""
        shelf = self._workshop.shelf
        fetcher = self._fetcher()
        with shelf.staging(self._key) as staged:
            found = self._fetched(source, fetcher, staged)
            descriptor = source.to_model_descriptor(self._model, found, name=self._name, version=self._version)
            if known is not None and (known.kind, known.checkpoint_hash) != (
                descriptor.kind,
                descriptor.checkpoint_hash,
            ):
                raise conflict_with(known)
            folder = shelf.folder_of(descriptor.kind, self._name, self._version)
            path = folder / found.path.relative_to(staged)
            with disk_errors(shelf.root):
                self._write_descriptor(staged, descriptor)
                self._check()
                shelf.put(staged, folder)
        above = path if path.is_dir() else path.parent
        files = [(above / file.path, file) for file in descriptor.files]
        published = self._published(files)
        registered = self._registered(descriptor, path, published.at or (known.published_at if known else None))
        if published.at is not None and not self._is_stored(descriptor.files):
            # What was in the object store already may have been cleaned up before the registry named it.
            published = self._published(files)
        return Installation(
            descriptor=descriptor,
            registered=registered,
            folder=folder,
            is_published=published.at is not None,
            downloaded_bytes=fetcher.downloaded_bytes,
            warnings=(*warnings, *found.warnings, *published.warnings),
        )

    def as_it_was(self, known: ModelContent) -> Installation:
        """What is installed already, just so; published and made the default where that is still to do."""
        registry = self._workshop.registry
        published = _Published(at=known.published_at)
        if known.published_at is None:
            published = self._published(files_at(known))
        if published.at not in {None, known.published_at}:
            registry.note_published(known.id, str(published.at))
        wants_default = bool(self._request.as_default)
        if wants_default:
            registry.make_default(known.id)
        return Installation(
            descriptor=descriptor_of(known),
            registered=Registered(known.id, is_new=False, is_default=known.is_default or wants_default),
            folder=self._workshop.shelf.folder_of(known.kind, self._name, self._version),
            is_published=published.at is not None,
            downloaded_bytes=0,
            warnings=published.warnings,
            was_there=True,
        )

    def _fetcher(self) -> ShelfFetcher:
        return self._workshop.fetcher(check=self._check, on_bytes=self._on_downloaded, on_wait=self._observer.on_wait)

    def _fetched(self, source: ModelSource, fetcher: ShelfFetcher, staged: Path) -> Inspection:
        self._observer.on_phase(Phase.DOWNLOAD)
        require_room(self._workshop.shelf.root, self._needed_bytes())
        files = source.fetch(self._model, staged, fetcher=fetcher)
        source.verify(self._model, files)
        self._observer.on_phase(Phase.INSPECT)
        path = staged if self._model.main is None else staged / self._model.main
        config = None if self._request.config is None else take_in(self._request.config, path.parent)
        known = {staged / file.path: file for file in files}
        for file in files:
            # Those too that no index names: somebody may, one day.
            if file.path.endswith(".safetensors"):
                read_header(staged / file.path)
        found = inspect(path, kind=self._request.kind or self._model.kind, config=config, known=known)
        return found if config is None else with_config(found, config)

    def _needed_bytes(self) -> int:
        missing = sum(map(self._missing_bytes, self._model.files))
        # Without links the model's folder has copies of the blobs.
        return missing if self._workshop.shelf.can_link() else missing + (self._model.size_bytes or 0)

    def _missing_bytes(self, file: RemoteFile) -> int:
        shelf = self._workshop.shelf
        if file.sha256 is not None and shelf.has(file.sha256, file.size):
            return 0
        partial = shelf.partial(file.key)
        # A file with holes takes the blocks that were written.
        there = partial.stat().st_blocks * 512 if partial.exists() else 0
        return max(0, (file.size or 0) - there)

    def _on_downloaded(self, path: str, done: int, total: int | None) -> None:
        with self._lock:
            self._done[path] = done
            self._held.tell(sum(self._done.values()), self._model.size_bytes)
        self._observer.on_bytes(Phase.DOWNLOAD, path, done, total)

    def _write_descriptor(self, staged: Path, descriptor: ModelDescriptor) -> None:
        told = {**asdict(descriptor), "reference": self._request.reference, "revision": self._model.source_uri}
        path = staged / DESCRIPTOR_NAME
        path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
        sync_file(path)

    def _published(self, files: list[tuple[Path, ModelFile]]) -> _Published:
        publisher = self._workshop.publisher
        if publisher is None or self._request.is_local_only:
            return _Published()
        self._observer.on_phase(Phase.PUBLISH)

        def on_bytes(path: str, done: int, total: int) -> None:
            self._observer.on_bytes(Phase.PUBLISH, path, done, total)

        try:
            publisher.publish(files, on_bytes=on_bytes, check=self._check)
        except StorageUnavailable as error:
            reference = f"{self._name}@{self._version}"
            words = f"{reference} is not in the object store, so other nodes cannot fetch it: {error.message}"
            return _Published(warnings=(f"{words} Once it answers: dreamforge model publish {reference}",))
        return _Published(at=datetime.now(UTC).isoformat(timespec="seconds"))

    def _is_stored(self, files: tuple[ModelFile, ...]) -> bool:
        try:
            return self._workshop.required_publisher().has(files)
        except StorageUnavailable:
            # It had them a moment ago.
            return True

    def _registered(self, descriptor: ModelDescriptor, path: Path, published_at: str | None) -> Registered:
        self._observer.on_phase(Phase.REGISTER)
        self._check()
        metadata = {**descriptor.metadata, **({PUBLISHED_AT: published_at} if published_at else {})}
        new = registration(replace(descriptor, metadata=metadata), path)
        return self._workshop.registry.register(new, as_default=self._request.as_default)
