"""The registry of models."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Engine, and_, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from dreamforge.jobs.identity import uuid_of
from dreamforge.store.engine import database_errors, in_time
from dreamforge.store.tables import ModelFileRow, ModelNodeRow, ModelRow


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
class ModelRecord:
    """A model and the nodes that hold it."""

    model: ModelRow
    nodes: Sequence[ModelNodeRow]


class ModelRegistry:
    """The registry, for whoever installs models."""

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine

    def has_any_installed(self) -> bool:
        """True when a job could find a model."""
        with database_errors(), self._engine.connect() as connection:
            return connection.execute(select(ModelRow.id).where(ModelRow.installed).limit(1)).first() is not None

    def source_uri(self, *, name: str, version: str) -> str | None:
        """Where a registered model came from, None when it is not registered."""
        query = select(ModelRow.source_uri).where(ModelRow.name == name, ModelRow.version == version)
        with database_errors(), self._engine.connect() as connection:
            return connection.execute(query).scalar_one_or_none()

    def is_default(self, *, name: str, version: str) -> bool:
        """True when jobs that name no model take this one."""
        query = select(ModelRow.is_default).where(ModelRow.name == name, ModelRow.version == version)
        with database_errors(), self._engine.connect() as connection:
            return bool(connection.execute(query).scalar_one_or_none())

    def register(self, new: NewModel) -> None:
        """Write the model and its files. It becomes the default when there is none."""
        with database_errors(), self._engine.begin() as connection:
            has_default = connection.execute(select(ModelRow.id).where(ModelRow.is_default)).first() is not None
            connection.execute(
                insert(ModelRow).values(
                    id=new.id,
                    name=new.name,
                    kind=new.kind,
                    version=new.version,
                    checkpoint_hash=new.checkpoint_hash,
                    source_uri=new.source_uri,
                    local_path=new.local_path,
                    installed=True,
                    is_default=not has_default,
                    parameters_schema=new.parameters_schema,
                    capabilities=list(new.capabilities),
                    metadata_json=new.metadata,
                    size_bytes=new.size_bytes,
                )
            )
            connection.execute(insert(ModelFileRow), new.file_rows(new.id))

    def make_default(self, model_id: uuid.UUID) -> None:
        """Have jobs that name no model take this one."""
        with database_errors(), self._engine.begin() as connection:
            connection.execute(update(ModelRow).where(ModelRow.is_default).values(is_default=False))
            connection.execute(
                update(ModelRow).where(ModelRow.id == model_id).values(is_default=True, updated_at=func.now())
            )

    def refresh(self, new: NewModel, *, with_files: bool) -> bool:
        """Bring what a registered model says of itself up to date: where it lies, schema, capabilities, metadata.

        Its id and what a person decided (enabled, default) stay; its files, their size and their hash too, unless
        ``with_files``. The model is the one of the same name, version and source. True when something changed.
        """
        now_said: dict[Any, Any] = {
            ModelRow.local_path: new.local_path,
            ModelRow.parameters_schema: new.parameters_schema,
            ModelRow.capabilities: list(new.capabilities),
            ModelRow.metadata_json: new.metadata,
        }
        if with_files:
            now_said |= {ModelRow.checkpoint_hash: new.checkpoint_hash, ModelRow.size_bytes: new.size_bytes}
        differs = or_(*(column.is_distinct_from(value) for column, value in now_said.items()))
        is_it = and_(ModelRow.name == new.name, ModelRow.version == new.version, ModelRow.source_uri == new.source_uri)
        statement = update(ModelRow).where(is_it, differs).values({**now_said, ModelRow.updated_at: func.now()})
        with database_errors(), self._engine.begin() as connection:
            model_id = connection.execute(statement.returning(ModelRow.id)).scalar_one_or_none()
            if model_id is not None and with_files:
                connection.execute(delete(ModelFileRow).where(ModelFileRow.model_id == model_id))
                connection.execute(insert(ModelFileRow), new.file_rows(model_id))
            return model_id is not None


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


class ModelStore:
    """The registry, for the API."""

    def __init__(self, *, engine: AsyncEngine) -> None:
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)

    async def list(self, wanted: ModelFilter | None = None) -> list[ModelRecord]:
        """Models, by name and version."""
        conditions = (wanted or ModelFilter()).conditions()
        query = select(ModelRow).where(*conditions).order_by(ModelRow.name, ModelRow.version)
        async with in_time(), self._sessions() as session:
            models = (await session.scalars(query)).all()
            nodes = (await session.scalars(select(ModelNodeRow).order_by(ModelNodeRow.node))).all()
        return [ModelRecord(model, [node for node in nodes if node.model_id == model.id]) for model in models]

    async def find(self, reference: str | None, *, prefers_usable: bool = False) -> ModelRow | None:
        """The model of an id, a name, or name@version; the default one for None.

        A name means its newest version, with ``prefers_usable`` the newest that is installed and enabled, if one is.
        """
        usable_first = [(ModelRow.installed & ModelRow.enabled).desc()] if prefers_usable else []
        query = select(ModelRow).order_by(*usable_first, ModelRow.created_at.desc()).limit(1)
        query = query.where(ModelRow.is_default if reference is None else _is_meant(reference))
        async with in_time(), self._sessions() as session:
            return await session.scalar(query)

    async def record(self, reference: str) -> ModelRecord | None:
        """What ``find`` finds, with the nodes that hold it."""
        async with in_time():
            model = await self.find(reference)
            if model is None:
                return None
            query = select(ModelNodeRow).where(ModelNodeRow.model_id == model.id).order_by(ModelNodeRow.node)
            async with self._sessions() as session:
                return ModelRecord(model, (await session.scalars(query)).all())

    async def ids_of(self, reference: str) -> Sequence[uuid.UUID]:
        """The models of an id, of a name in all its versions, or of name@version."""
        async with in_time(), self._sessions() as session:
            return (await session.scalars(select(ModelRow.id).where(_is_meant(reference)))).all()


def _is_meant(reference: str) -> ColumnElement[bool]:
    name, _, version = reference.partition("@")
    named = (ModelRow.name == name) & (ModelRow.version == version) if version else ModelRow.name == reference
    identity = uuid_of(reference)
    return named if identity is None else or_(ModelRow.id == identity, named)
