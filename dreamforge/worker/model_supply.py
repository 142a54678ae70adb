"""The models of a step, brought to its node before the runner starts.

One that lies where it was installed is used there: on the machine itself, or in a folder that all nodes share. Others
come from the object store, into the node's cache. Nodes speak to no hub, and have no token of one.
"""

import logging
import uuid
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from dreamforge.blobs import Blobs
from dreamforge.errors import (
    DatabaseUnavailable,
    DiskFull,
    DownloadCorrupt,
    ModelCorrupt,
    ModelNotInstalled,
    NodeError,
    SourceError,
    SourceNotFound,
    StorageUnavailable,
    reason_of,
)
from dreamforge.installation.fetcher import Engine, ShelfFetcher
from dreamforge.jobs.events import RunnerWarning
from dreamforge.models.object_keys import model_file_key
from dreamforge.models.remote import Location, RemoteFile
from dreamforge.models.shelf import Shelf
from dreamforge.patience import for_seconds, outlast
from dreamforge.store.companions import Companions, StepModel
from dreamforge.store.downloads import DownloadLeases
from dreamforge.store.model_nodes import Keeper, ModelNodeStore
from dreamforge.store.step_calls import StepCall
from dreamforge.worker.fetch_progress import FetchProgress
from dreamforge.worker.halt import Halt
from dreamforge.worker.journal import Journal
from dreamforge.worker.model_cache import Holding, ModelCache
from dreamforge.worker.model_files import main_file, not_here
from dreamforge.worker.node import Limits, Node

log = logging.getLogger(__name__)

_URL_SECONDS = 3600
"""After which the address of a file is made anew."""


@dataclass(frozen=True)
class ModelStock:
    """What a node needs to have models. ``cache_size``: bytes that those which it fetched may take, None for all."""

    shelf: Shelf
    cache_size: int | None
    leases: DownloadLeases
    downloader: Engine
    nodes: ModelNodeStore


class ModelSupply:
    """One attempt's. The step's time limit rests while models are on their way.

    ``owner``: who this is, for others of the node who wait for what it fetches.
    """

    def __init__(
        self,
        *,
        stock: ModelStock,
        blobs: Blobs,
        node: Node,
        limits: Limits,
        journal: Journal,
        halt: Halt,
        owner: str,
    ) -> None:
        self._owner = owner
        self._stock = stock
        self._blobs = blobs
        self._node = node
        self._limits = limits
        self._journal = journal
        self._halt = halt
        self._cache = ModelCache(shelf=stock.shelf, size=stock.cache_size, check=halt.check_idle)

    @contextmanager
    def models_of(self, call: StepCall) -> Generator["SuppliedModels"]:
        """Have every model of the call on this node, and keep it here for the length of the block.

        Raises ``ModelNotInstalled`` for one that is neither here nor in the object store, ``ModelCorrupt``,
        ``NodeError``, ``StorageUnavailable``, and whatever ``halt`` raises.
        """
        if call.companions.missing:
            # Before anything is fetched for a step that cannot be drawn.
            raise not_here(call.companions.missing[0], self._node)
        models = _models_of(call)
        installed = {model.id: Path(model.local_path or "") for model in models if is_installed_here(model)}
        fetched = [model for model in models if model.id not in installed]
        with self._halt.uncounted():
            self._require_published(fetched)
        if not fetched:
            self._note_use(models)
            yield SuppliedModels(self, installed, [])
            return
        with self._cache.hold(fetched) as holding:
            self._tell_of_room(holding)
            supplied = SuppliedModels(self, installed, fetched)
            self._note_use(models, verified=supplied.bring())
            yield supplied

    def bring(self, model: StepModel) -> tuple[Path, bool]:
        """Have a model in the cache, in which it is held: where it is, and whether some of it had to be fetched."""
        folder, is_new = self._cache.find(model), False
        with self._halt.uncounted():
            while folder is None:
                is_new = self._fetch(model) or is_new
                folder = self._cache.assemble(model)
        return folder / (main_file(model) or ""), is_new

    def drop_damaged(self, model: StepModel) -> bool:
        """Read a cached model again, and drop what is damaged; True when it has to be brought again."""
        with self._halt.uncounted():
            is_damaged = self._cache.drop_damaged(model)
        if is_damaged:
            message = f"The copy of {model.reference} on this node was damaged: it is fetched again."
            self._journal.record(RunnerWarning(message=message, details={"node": self._node.name}))
        return is_damaged

    def _fetch(self, model: StepModel) -> bool:
        missing = self._cache.missing(model)
        if not missing:
            return False
        progress = FetchProgress(
            model=model.reference,
            sizes={file.path: file.size for file in missing},
            record=self._journal.record,
            is_busy=lambda: self._journal.is_away,
        )
        with _fetch_errors(model, self._node):
            fetcher = ShelfFetcher(
                shelf=self._stock.shelf,
                leases=self._stock.leases,
                downloader=self._stock.downloader,
                owner=self._owner,
                check=self._halt.check_idle,
                on_bytes=progress.on_bytes,
                on_wait=progress.on_wait,
            )
            for file in missing:
                self._have(fetcher, RemoteFile(path=file.path, url="", size=file.size, sha256=file.sha256))
        progress.end()
        return True

    def _have(self, fetcher: ShelfFetcher, file: RemoteFile) -> None:
        key = model_file_key(file.sha256 or "")

        def locate() -> Location:
            return Location(self._blobs.presign_internal(key, ttl=_URL_SECONDS))

        outlast(lambda: fetcher.have(file, locate), may_wait=for_seconds(self._limits.database_grace))

    def _require_published(self, models: Iterable[StepModel]) -> None:
        """Raise before anything has to make room for a model that cannot come."""
        for model in models:
            if not model.files or model.local_path is None:
                raise _nowhere(model, self._node)
            for file in self._cache.missing(model):
                _require_inside(file.path)
                if self._size_of(model_file_key(file.sha256)) != file.size:
                    raise self._not_published(model)

    def _size_of(self, key: str) -> int | None:
        def look() -> int | None:
            self._halt.check_idle()
            return self._blobs.size_of(key)

        return outlast(look, trouble=StorageUnavailable, may_wait=for_seconds(self._limits.storage_grace))

    def _not_published(self, model: StepModel) -> Exception:
        self._best_effort(lambda: self._stock.nodes.forget(self._stock.shelf.place(), [model.id]))
        return _nowhere(model, self._node)

    def _tell_of_room(self, holding: Holding) -> None:
        if holding.evicted:
            gone = [entry.model_id for entry in holding.evicted]
            self._best_effort(lambda: self._stock.nodes.forget(self._stock.shelf.place(), gone))
        if holding.excess:
            self._journal.record(
                RunnerWarning(
                    message="The models in use take more than DREAMFORGE_MODEL_CACHE_SIZE allows on this node.",
                    details={"node": self._node.name, "bytes_over": holding.excess, "limit": self._stock.cache_size},
                )
            )

    def _note_use(self, models: list[StepModel], *, verified: Iterable[uuid.UUID] = ()) -> None:
        def note() -> None:
            keeper = Keeper(self._stock.shelf.place(), self._node.name, self._node.id)
            self._stock.nodes.note_use(keeper, [model.id for model in models], verified=set(verified))

        self._best_effort(note)

    def _best_effort(self, write: Callable[[], None]) -> None:
        """What is only told of the node: the step does not wait for it."""
        try:
            write()
        except (DatabaseUnavailable, OSError) as error:
            log.warning("it is not written which models are here", extra={"error": type(error).__name__})


class SuppliedModels:
    """The models of a step on this node: those that lie where they were installed, and the fetched ones."""

    def __init__(self, supply: ModelSupply, installed: dict[uuid.UUID, Path], fetched: list[StepModel]) -> None:
        self._supply = supply
        self._paths = installed
        self._fetched = fetched

    def bring(self) -> list[uuid.UUID]:
        """Have those that are to be fetched; the ones of which something was."""
        new: list[uuid.UUID] = []
        for model in self._fetched:
            self._paths[model.id], is_new = self._supply.bring(model)
            if is_new:
                new.append(model.id)
        return new

    def mend(self) -> bool:
        """Bring anew what turns out to be damaged in the cache; False when it was not the cache's fault."""
        damaged = [model for model in self._fetched if self._supply.drop_damaged(model)]
        if damaged:
            self.bring()
        return bool(damaged)

    def located(self, call: StepCall) -> StepCall:
        """The call with its models where they are on this node."""
        beside = call.companions
        loras = tuple(replace(lora, model=self._located(lora.model)) for lora in beside.loras)
        vae = self._located(beside.vae) if beside.vae else None
        return replace(
            call,
            model=self._located(call.model) if call.model else None,
            companions=Companions(loras=loras, vae=vae, missing=beside.missing),
        )

    def _located(self, model: StepModel) -> StepModel:
        return replace(model, local_path=str(self._paths[model.id]))


def is_installed_here(model: StepModel) -> bool:
    """True for a model that lies on this node where it was installed, every file with the size that it had then."""
    if model.local_path is None:
        return False
    path = Path(model.local_path)
    folder = path.parent if main_file(model) else path
    try:
        return path.exists() and all((folder / file.path).stat().st_size == file.size for file in model.files)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False


def _models_of(call: StepCall) -> list[StepModel]:
    beside = call.companions
    models = [call.model, beside.vae, *(lora.model for lora in beside.loras)]
    return list({model.id: model for model in models if model is not None}.values())


def _require_inside(path: str) -> None:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ModelCorrupt(f"{path!r} is no place in a model's folder.", details={"file": path})


def _nowhere(model: StepModel, node: Node) -> ModelNotInstalled | ModelCorrupt:
    if model.local_path is not None and Path(model.local_path).exists():
        return ModelCorrupt(
            f"The files of {model.reference} have changed since it was installed, and are not in the object store.",
            details=_where(model, node),
            suggestions=[f"See what has changed: dreamforge model verify {model.reference}"],
        )
    return ModelNotInstalled(
        f"The files of {model.reference} are neither on this node, as they were installed, nor in the object store.",
        details=_where(model, node),
        suggestions=[f"On the machine that has them: dreamforge model publish {model.reference}"],
    )


def _where(model: StepModel, node: Node) -> dict[str, Any]:
    return {"model": model.reference, "node": node.name, "node_id": node.id}


@contextmanager
def _fetch_errors(model: StepModel, node: Node) -> Generator[None]:
    """Tell of the object store what the download tells of its source."""
    where = _where(model, node)
    try:
        yield
    except SourceNotFound as error:
        raise _nowhere(model, node) from error
    except DownloadCorrupt as error:
        raise ModelCorrupt(
            f"A file of {model.reference} in the object store is not what was published.",
            details={**error.details, **where},
            suggestions=[f"On the machine that has it: dreamforge model publish --again {model.reference}"],
        ) from error
    except DiskFull as error:
        raise NodeError(
            f"There is too little room on this node's disk for {model.reference}.", details={**error.details, **where}
        ) from error
    except SourceError as error:
        raise StorageUnavailable(error.message, details={**error.details, **where}) from error
    except OSError as error:
        details = {**reason_of(error), **where}
        raise NodeError("The model cache on this node cannot be used.", details=details) from error
