"""What the registry knows of a model's files: which there are, and where."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, func, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import InstrumentedAttribute

from dreamforge.errors import UnknownModel
from dreamforge.store.model_changes import NewModelFile, is_meant
from dreamforge.store.tables import ModelFileRow, ModelRow

PUBLISHED_AT = "published_at"
"""Of a model's metadata: when its files were last sent to the object store."""

_COLUMNS: tuple[InstrumentedAttribute[Any], ...] = (
    ModelRow.id,
    ModelRow.name,
    ModelRow.version,
    ModelRow.kind,
    ModelRow.source_uri,
    ModelRow.checkpoint_hash,
    ModelRow.local_path,
    ModelRow.installed,
    ModelRow.is_default,
    ModelRow.parameters_schema,
)


@dataclass(frozen=True)
class ModelContent:
    """A registered model with its files. ``local_path`` is None once it was removed."""

    id: uuid.UUID
    name: str
    version: str
    kind: str
    source_uri: str
    checkpoint_hash: str | None
    local_path: str | None
    installed: bool
    is_default: bool
    parameters_schema: dict[str, Any]
    capabilities: tuple[str, ...]
    metadata: dict[str, Any]
    files: tuple[NewModelFile, ...]

    @property
    def reference(self) -> str:
        """What it is called, whatever other versions there are."""
        return f"{self.name}@{self.version}"

    @property
    def published_at(self) -> str | None:
        """When its files were last sent to the object store."""
        return self.metadata.get(PUBLISHED_AT)


def content_named(connection: Connection, *, name: str, version: str) -> ModelContent | None:
    """The model of this name and version, installed or not."""
    found = _contents(connection, ModelRow.name == name, ModelRow.version == version)
    return found[0] if found else None


def installed_contents(connection: Connection, references: Sequence[str]) -> list[ModelContent]:
    """The installed models that these mean, each as `is_meant` has it; all of them, where none are given.

    Raises ``UnknownModel`` for a reference that means none.
    """
    if not references:
        return _contents(connection, ModelRow.installed)
    found: dict[uuid.UUID, ModelContent] = {}
    for reference in references:
        meant = _contents(connection, ModelRow.installed, is_meant(reference))
        if not meant:
            raise UnknownModel(f"No installed model {reference!r}.", details={"model_id": reference})
        found.update({content.id: content for content in meant})
    return list(found.values())


def set_published(connection: Connection, model_id: uuid.UUID, at: str) -> None:
    """Write down when the model's files were sent to the object store."""
    metadata = ModelRow.metadata_json.op("||", return_type=JSONB())(func.jsonb_build_object(PUBLISHED_AT, at))
    connection.execute(update(ModelRow).where(ModelRow.id == model_id).values(metadata_json=metadata))


def unless_needed(connection: Connection, sha256: str, remove: Callable[[], None]) -> bool:
    """Call ``remove`` unless an installed model has a file of this content; True when it was called."""
    query = select(ModelFileRow.path).join(ModelRow, ModelRow.id == ModelFileRow.model_id)
    if connection.execute(query.where(ModelFileRow.sha256 == sha256, ModelRow.installed).limit(1)).first():
        return False
    remove()
    return True


def _contents(
    connection: Connection, *conditions: ColumnElement[bool] | InstrumentedAttribute[bool]
) -> list[ModelContent]:
    query = select(*_COLUMNS, ModelRow.metadata_json.label("metadata"), ModelRow.capabilities)
    models = connection.execute(query.where(*conditions).order_by(ModelRow.name, ModelRow.version)).mappings().all()
    files: dict[uuid.UUID, list[NewModelFile]] = {model["id"]: [] for model in models}
    query_files = select(ModelFileRow.model_id, ModelFileRow.path, ModelFileRow.size, ModelFileRow.sha256)
    for row in connection.execute(query_files.where(ModelFileRow.model_id.in_(files)).order_by(ModelFileRow.path)):
        files[row.model_id].append(NewModelFile(path=row.path, size=row.size, sha256=row.sha256))
    return [_content(model, tuple(files[model["id"]])) for model in models]


def _content(model: RowMapping, files: tuple[NewModelFile, ...]) -> ModelContent:
    columns: dict[str, Any] = {**model, "capabilities": tuple(model["capabilities"])}
    return ModelContent(**columns, files=files)
