"""The registry of models."""

import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, and_, exists, func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import InstrumentedAttribute

from dreamforge.errors import Conflict, UnknownModel
from dreamforge.store.engine import database_errors, in_time
from dreamforge.store.model_changes import (
    KNOWN,
    KnownModel,
    NewModel,
    NewModelFile,
    Registered,
    forget,
    has_default,
    is_checkpoint,
    is_meant,
    put_default,
    require_dispensable,
    switch,
    wants_default,
    write_files,
    write_model,
)
from dreamforge.store.model_contents import (
    ModelContent,
    content_named,
    installed_contents,
    set_published,
    unless_needed,
)
from dreamforge.store.tables import HeartbeatRow, ModelNodeRow, ModelRow

__all__ = [
    "USABLE",
    "HoldingNode",
    "KnownModel",
    "ModelContent",
    "ModelFilter",
    "ModelRecord",
    "ModelRegistry",
    "ModelStore",
    "NewModel",
    "NewModelFile",
    "Registered",
]

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class HoldingNode:
    """A node that holds a model. ``is_online``: it has given a sign of life lately."""

    row: ModelNodeRow
    is_online: bool


@dataclass(frozen=True)
class ModelRecord:
    """A model and the nodes that hold it."""

    model: ModelRow
    nodes: Sequence[HoldingNode]


class ModelRegistry:
    """The registry, for whoever installs models. Each change is made whole, and one after the other."""

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine

    def has_any_installed(self) -> bool:
        """True when a job could find a model."""
        with database_errors(), self._engine.connect() as connection:
            is_one = ModelRow.installed & is_checkpoint()
            return connection.execute(select(ModelRow.id).where(is_one).limit(1)).first() is not None

    def source_uri(self, *, name: str, version: str) -> str | None:
        """Where a registered model came from, None when it is not registered."""
        return self._value(ModelRow.source_uri, name, version)

    def is_default(self, *, name: str, version: str) -> bool:
        """True when jobs that name no model take this one."""
        return bool(self._value(ModelRow.is_default, name, version))

    def is_installed(self, *, name: str, version: str) -> bool:
        """True when it is registered, and was not removed."""
        return bool(self._value(ModelRow.installed, name, version))

    def find(self, reference: str) -> KnownModel:
        """The model of an id, name@version, or of a name that has one version.

        Raises ``UnknownModel``, and ``Conflict`` for a name that has several: those that are installed count first.
        """
        query = select(*KNOWN).where(is_meant(reference)).order_by(ModelRow.version)
        with database_errors(), self._engine.connect() as connection:
            found = [KnownModel(**row) for row in connection.execute(query).mappings()]
        found = [model for model in found if model.installed] or found
        if not found:
            raise UnknownModel(f"No model {reference!r}.", details={"model_id": reference})
        if len(found) > 1:
            versions = ", ".join(model.reference for model in found)
            raise Conflict(f"{reference!r} has several versions: say which, of {versions}.")
        return found[0]

    def content_of(self, *, name: str, version: str) -> ModelContent | None:
        """The model of this name and version with its files, installed or not; None when it is not registered."""
        with database_errors(), self._engine.connect() as connection:
            return content_named(connection, name=name, version=version)

    def installed(self, references: Sequence[str] = ()) -> list[ModelContent]:
        """The installed models of these names, name@versions or ids, all of them where none are given.

        Raises ``UnknownModel``.
        """
        with database_errors(), self._engine.connect() as connection:
            return installed_contents(connection, references)

    def note_published(self, model_id: uuid.UUID, at: str) -> None:
        """Write down when the model's files were sent to the object store."""
        with self._changing() as connection:
            set_published(connection, model_id, at)

    def unless_needed(self, sha256: str, remove: Callable[[], None]) -> bool:
        """Call ``remove`` unless an installed model has a file of this content; none is registered meanwhile.

        True when it was called.
        """
        with self._changing() as connection:
            return unless_needed(connection, sha256, remove)

    def register(self, new: NewModel, *, as_default: bool | None = None) -> Registered:
        """Write the model and its files; of a model that is known by name, version and hash, where it lies now.

        It becomes the default if ``as_default`` says so; where that is None, when there is no default that jobs could
        be run with, or only the built-in one. Raises ``Conflict`` for a name and version of other content, and what
        ``make_default`` raises.
        """
        with self._changing() as connection:
            id, is_new = write_model(connection, new)
            if wants_default(connection, new, id) if as_default is None else as_default:
                put_default(connection, id)
            is_default = connection.scalar(select(ModelRow.is_default).where(ModelRow.id == id))
            return Registered(id=id, is_new=is_new, is_default=bool(is_default))

    def make_default(self, model_id: uuid.UUID) -> None:
        """Have jobs that name no model take this one.

        Raises ``UnknownModel``, ``ModelIncompatible`` for what is no checkpoint, ``ModelNotInstalled`` and
        ``ModelDisabled``.
        """
        with self._changing() as connection:
            put_default(connection, model_id)

    def set_enabled(self, model_id: uuid.UUID, enabled: bool) -> None:
        """Switch a model on or off. Raises ``UnknownModel``, and ``Conflict`` for the default where others could be."""
        with self._changing() as connection:
            if not enabled:
                require_dispensable(connection, model_id)
            switch(connection, model_id, enabled=enabled)

    def remove(self, model_id: uuid.UUID) -> bool:
        """Forget a model; its files are not touched. False when its row stays, not installed: jobs tell of it.

        Raises ``UnknownModel``, and ``Conflict`` for the default where others could be, and while jobs wait for it.
        """
        with self._changing() as connection:
            require_dispensable(connection, model_id)
            return forget(connection, model_id)

    def refresh(self, new: NewModel, *, with_files: bool) -> bool:
        """Bring what a registered model says of itself up to date: where it lies, schema, capabilities, metadata.

        Its id and what a person decided (enabled, default) stay; its files, their size and their hash too, unless
        ``with_files``. The model is the one of the same name, version and source. It is installed again if it was
        removed, and the default if there is none and it is not switched off. True when something changed.
        """
        now_said: dict[Any, Any] = {
            ModelRow.local_path: new.local_path,
            ModelRow.parameters_schema: new.parameters_schema,
            ModelRow.capabilities: list(new.capabilities),
            ModelRow.metadata_json: new.metadata,
            ModelRow.installed: True,
        }
        if with_files:
            now_said |= {ModelRow.checkpoint_hash: new.checkpoint_hash, ModelRow.size_bytes: new.size_bytes}
        differs = or_(*(column.is_distinct_from(value) for column, value in now_said.items()))
        is_it = and_(ModelRow.name == new.name, ModelRow.version == new.version, ModelRow.source_uri == new.source_uri)
        statement = update(ModelRow).where(is_it, differs).values({**now_said, ModelRow.updated_at: func.now()})
        with self._changing() as connection:
            known = connection.execute(statement.returning(ModelRow.id, ModelRow.enabled)).one_or_none()
            if known is None:
                return False
            if with_files:
                write_files(connection, new, known.id)
            if known.enabled and not has_default(connection):
                put_default(connection, known.id)
            return True

    def _value(self, column: InstrumentedAttribute[_Value], name: str, version: str) -> _Value | None:
        query = select(column).where(ModelRow.name == name, ModelRow.version == version)
        with database_errors(), self._engine.connect() as connection:
            return connection.execute(query).scalar_one_or_none()

    @contextmanager
    def _changing(self) -> Generator[Connection]:
        with database_errors(), self._engine.begin() as connection:
            # Others that change models wait; whoever reads them does not, and neither do jobs that refer to one.
            connection.execute(text("LOCK TABLE models IN SHARE ROW EXCLUSIVE MODE"))
            yield connection


@dataclass(frozen=True)
class ModelFilter:
    """Which models to list; None means all."""

    kind: str | None = None
    installed: bool | None = None
    enabled: bool | None = None
    capability: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The filter as SQL."""
        conditions: list[ColumnElement[bool]] = []
        if self.kind is not None:
            conditions.append(ModelRow.kind == self.kind)
        if self.installed is not None:
            conditions.append(ModelRow.installed == self.installed)
        if self.enabled is not None:
            conditions.append(ModelRow.enabled == self.enabled)
        if self.capability is not None:
            conditions.append(ModelRow.capabilities.contains([self.capability]))
        return conditions


USABLE = ModelFilter(installed=True, enabled=True)
"""Those that a new job may name."""


class ModelStore:
    """The registry, for the API. ``node_silence``: seconds without a sign of life that make a node be away."""

    def __init__(self, *, engine: AsyncEngine, node_silence: float = 15.0) -> None:
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)
        self._node_silence = node_silence

    async def list(self, wanted: ModelFilter | None = None) -> list[ModelRecord]:
        """Models, by name and version."""
        conditions = (wanted or ModelFilter()).conditions()
        query = select(ModelRow).where(*conditions).order_by(ModelRow.name, ModelRow.version)
        async with in_time(), self._sessions() as session:
            models = (await session.scalars(query)).all()
            nodes = await _holding(session, silence=self._node_silence)
        return [ModelRecord(model, [node for node in nodes if node.row.model_id == model.id]) for model in models]

    async def find(self, reference: str | None, *, prefers: Sequence[ModelFilter] = ()) -> ModelRow | None:
        """The model of an id, a name, or name@version; the default one for None.

        A name means its newest version: of those that pass the first of ``prefers``, if any does, those that pass the
        second, and so on.
        """
        preferred = [and_(*wanted.conditions()).desc() for wanted in prefers]
        query = select(ModelRow).order_by(*preferred, ModelRow.created_at.desc()).limit(1)
        query = query.where(ModelRow.is_default if reference is None else is_meant(reference))
        async with in_time(), self._sessions() as session:
            return await session.scalar(query)

    async def record(self, reference: str) -> ModelRecord | None:
        """What ``find`` finds, with the nodes that hold it."""
        async with in_time():
            model = await self.find(reference)
            if model is None:
                return None
            async with self._sessions() as session:
                is_its = ModelNodeRow.model_id == model.id
                return ModelRecord(model, await _holding(session, is_its, silence=self._node_silence))

    async def ids_of(self, reference: str) -> Sequence[uuid.UUID]:
        """The models of an id, of a name in all its versions, or of name@version."""
        async with in_time(), self._sessions() as session:
            return (await session.scalars(select(ModelRow.id).where(is_meant(reference)))).all()


async def _holding(session: AsyncSession, *which: ColumnElement[bool], silence: float) -> list[HoldingNode]:
    # By its address where Ray calls it by another id since: it was started anew, and has not drawn with it yet.
    is_it = or_(HeartbeatRow.id == func.concat("node:", ModelNodeRow.node_id), HeartbeatRow.node == ModelNodeRow.node)
    is_fresh = HeartbeatRow.seen_at > func.now() - func.make_interval(0, 0, 0, 0, 0, 0, silence)
    is_online = exists().where(HeartbeatRow.kind == "node", is_it, is_fresh)
    query = select(ModelNodeRow, is_online).where(*which).order_by(ModelNodeRow.node, ModelNodeRow.place)
    return [HoldingNode(row, is_up) for row, is_up in (await session.execute(query)).all()]
