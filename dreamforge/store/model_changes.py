"""The statements that change the registry of models. Whoever calls holds its lock: see ``ModelRegistry``."""

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, or_, select, update

from dreamforge.errors import Conflict, ModelDisabled, ModelIncompatible, ModelNotInstalled, UnknownModel
from dreamforge.jobs.identity import uuid_of
from dreamforge.jobs.job import JobStatus, JobType
from dreamforge.store.tables import JobRow, ModelFileRow, ModelNodeRow, ModelRow

BUILT_IN = "builtin:"
"""How the source of a model begins that came with the service."""

KNOWN = (ModelRow.id, ModelRow.name, ModelRow.version, ModelRow.kind, ModelRow.installed, ModelRow.enabled)


@dataclass(frozen=True)
class NewModelFile:
    """A file of a model; ``path`` is relative to its folder, ``sha256`` in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class NewModel:
    """A model to register, installed."""

    id: uuid.UUID
    name: str
    kind: str
    version: str
    checkpoint_hash: str | None
    source_uri: str
    local_path: str
    parameters_schema: dict[str, Any]
    capabilities: tuple[str, ...]
    metadata: dict[str, Any]
    files: tuple[NewModelFile, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    def file_rows(self, model_id: uuid.UUID) -> list[dict[str, Any]]:
        """What is kept of its files under the id that the model is registered by."""
        return [{"model_id": model_id, **vars(file)} for file in self.files]


@dataclass(frozen=True)
class Registered:
    """What became of a model that was registered. ``is_new``: it was not known before."""

    id: uuid.UUID
    is_new: bool
    is_default: bool


@dataclass(frozen=True)
class KnownModel:
    """A model as whoever changes it needs to know it."""

    id: uuid.UUID
    name: str
    version: str
    kind: str
    installed: bool
    enabled: bool

    @property
    def reference(self) -> str:
        """What it is called, whatever other versions there are."""
        return f"{self.name}@{self.version}"


def is_checkpoint() -> ColumnElement[bool]:
    """True for what images are drawn with; LoRAs and VAEs only go with it."""
    return ModelRow.capabilities.contains([JobType.GENERATE.value])


def _names(reference: str) -> ColumnElement[bool]:
    """The jobs whose parameters name this LoRA or VAE, as name@version.

    No index serves it: every job is read, 300,000 short ones in 0.2 seconds. Only who removes a LoRA or VAE asks.
    """
    in_loras = JobRow.params_json.contains({"loras": [{"id": reference}]})
    return or_(in_loras, JobRow.params_json.contains({"vae": reference}))


def is_meant(reference: str) -> ColumnElement[bool]:
    """The models of an id, of a name in all its versions, or of name@version."""
    name, _, version = reference.partition("@")
    named = (ModelRow.name == name) & (ModelRow.version == version) if version else ModelRow.name == reference
    identity = uuid_of(reference)
    return named if identity is None else or_(ModelRow.id == identity, named)


def write_model(connection: Connection, new: NewModel) -> tuple[uuid.UUID, bool]:
    """Write the model; its id, and whether it is new. Raises ``Conflict`` for a name and version of other content."""
    query = select(ModelRow.id, ModelRow.kind, ModelRow.source_uri, ModelRow.checkpoint_hash)
    known = connection.execute(query.where(ModelRow.name == new.name, ModelRow.version == new.version)).one_or_none()
    values: dict[str, Any] = {
        "source_uri": new.source_uri,
        "local_path": new.local_path,
        "installed": True,
        "parameters_schema": new.parameters_schema,
        "capabilities": list(new.capabilities),
        "metadata_json": new.metadata,
        "size_bytes": new.size_bytes,
    }
    if known is None:
        identity = {"id": new.id, "name": new.name, "version": new.version, "kind": new.kind}
        connection.execute(insert(ModelRow).values(**identity, **values, checkpoint_hash=new.checkpoint_hash))
    elif not _is_same(connection, new, known):
        raise Conflict(
            f"There is a model {new.name}@{new.version} already, with other content. "
            "Choose another name or another version.",
            details={"model_id": str(known.id), "checkpoint_hash": known.checkpoint_hash},
        )
    else:
        statement = update(ModelRow).where(ModelRow.id == known.id)
        connection.execute(statement.values(**values, checkpoint_hash=new.checkpoint_hash, updated_at=func.now()))
    model_id = new.id if known is None else known.id
    write_files(connection, new, model_id)
    return model_id, known is None


def _is_same(connection: Connection, new: NewModel, known: Row[uuid.UUID, str, str, str | None]) -> bool:
    """True for the content that is known: by its hash, or by its files where the hash is one of hidden files too.

    Those of a folder counted once: `.gitattributes`, and what huggingface_hub leaves in `.cache`.
    """
    if new.checkpoint_hash is None or known.kind != new.kind:
        return False
    if known.checkpoint_hash == new.checkpoint_hash:
        return True
    query = select(ModelFileRow.path, ModelFileRow.sha256).where(ModelFileRow.model_id == known.id)
    files = {row.path: row.sha256 for row in connection.execute(query)}
    shown = {path: sha256 for path, sha256 in files.items() if not _is_hidden(path)}
    has_hidden = len(shown) < len(files)
    return has_hidden and known.source_uri == new.source_uri and shown == {file.path: file.sha256 for file in new.files}


def _is_hidden(path: str) -> bool:
    """True for a file whose name, or a folder's above it, begins with a dot."""
    return any(part.startswith(".") for part in path.split("/"))


def write_files(connection: Connection, new: NewModel, model_id: uuid.UUID) -> None:
    """Write which files the model has, in place of those that it had."""
    connection.execute(delete(ModelFileRow).where(ModelFileRow.model_id == model_id))
    connection.execute(insert(ModelFileRow), new.file_rows(model_id))


def has_default(connection: Connection) -> bool:
    """True when there is a default, whether it can be used or not."""
    return connection.execute(select(ModelRow.id).where(ModelRow.is_default)).first() is not None


def wants_default(connection: Connection, new: NewModel, model_id: uuid.UUID) -> bool:
    """True where the model should become the default without being asked to."""
    may_be = ModelRow.id == model_id, ModelRow.enabled, is_checkpoint()
    if connection.execute(select(ModelRow.id).where(*may_be)).first() is None:
        return False
    query = select(ModelRow.source_uri, (ModelRow.installed & ModelRow.enabled).label("usable"))
    now = connection.execute(query.where(ModelRow.is_default)).one_or_none()
    if now is None or not now.usable:
        return True
    return now.source_uri.startswith(BUILT_IN) and not new.source_uri.startswith(BUILT_IN)


def put_default(connection: Connection, model_id: uuid.UUID) -> None:
    """Make a model the default. Raises why it cannot be."""
    query = select(*KNOWN, is_checkpoint().label("draws")).where(ModelRow.id == model_id)
    model = connection.execute(query).one_or_none()
    if model is None:
        raise UnknownModel
    shown = f"{model.name}@{model.version}"
    if not model.draws:
        raise ModelIncompatible(f"{shown} is no checkpoint: images are not drawn with it alone.")
    if not model.installed:
        raise ModelNotInstalled(f"{shown} is not installed.")
    if not model.enabled:
        raise ModelDisabled(f"{shown} is switched off.")
    connection.execute(update(ModelRow).where(ModelRow.is_default, ModelRow.id != model_id).values(is_default=False))
    connection.execute(
        update(ModelRow)
        .where(ModelRow.id == model_id, ~ModelRow.is_default)
        .values(is_default=True, updated_at=func.now())
    )


def switch(connection: Connection, model_id: uuid.UUID, *, enabled: bool) -> None:
    """Switch a model on or off. Raises ``UnknownModel``."""
    statement = update(ModelRow).where(ModelRow.id == model_id, ModelRow.enabled != enabled)
    connection.execute(statement.values(enabled=enabled, updated_at=func.now()))
    if connection.execute(select(ModelRow.id).where(ModelRow.id == model_id)).first() is None:
        raise UnknownModel


def require_dispensable(connection: Connection, model_id: uuid.UUID) -> None:
    """Raise ``Conflict`` for the default while another could be: which one is for a person to say."""
    if not connection.scalar(select(ModelRow.is_default).where(ModelRow.id == model_id)):
        return
    others = (ModelRow.id != model_id, ModelRow.installed, ModelRow.enabled, is_checkpoint())
    query = select(ModelRow.name, ModelRow.version).where(*others).order_by(ModelRow.created_at.desc()).limit(1)
    if (other := connection.execute(query).one_or_none()) is not None:
        raise Conflict(
            "It is the model of jobs that name none. Make another one that first: "
            f"dreamforge model default {other.name}@{other.version}"
        )


def forget(connection: Connection, model_id: uuid.UUID) -> bool:
    """Delete the model's row, or keep it, not installed, for the jobs that tell of it; True when it is deleted.

    Raises ``UnknownModel``, and ``Conflict`` while jobs wait for it.
    """
    # With this lock no job comes to refer to it meanwhile: see `hold_companions`.
    query = select(*KNOWN, is_checkpoint().label("draws")).where(ModelRow.id == model_id).with_for_update()
    model = connection.execute(query).one_or_none()
    if model is None:
        raise UnknownModel
    tells = JobRow.model_id == model_id if model.draws else _names(f"{model.name}@{model.version}")
    waiting = [status.value for status in JobStatus if not status.is_terminal]
    jobs = select(func.count(), func.count().filter(JobRow.status.in_(waiting))).where(tells)
    told, unfinished = connection.execute(jobs).one()
    if unfinished:
        many = "1 job waits" if unfinished == 1 else f"{unfinished} jobs wait"
        raise Conflict(f"{many} for it. Cancel what is no longer wanted: dreamforge jobs list")
    if not told:
        connection.execute(delete(ModelRow).where(ModelRow.id == model_id))
        return True
    connection.execute(delete(ModelNodeRow).where(ModelNodeRow.model_id == model_id))
    gone = {"installed": False, "is_default": False, "local_path": None, "updated_at": func.now()}
    connection.execute(update(ModelRow).where(ModelRow.id == model_id).values(gone))
    return False
