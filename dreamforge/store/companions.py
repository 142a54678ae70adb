"""The LoRAs and the VAE of a step, by the names in its job's parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Select, func, select, tuple_

from dreamforge.store.tables import JobRow, ModelFileRow, ModelRow, StepRow


@dataclass(frozen=True)
class StepFile:
    """A file of a model, as the registry knows it. ``path`` is relative to the model's folder, ``sha256`` in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class StepModel:
    """A model that a step draws with.

    ``local_path``: where it lies, absolute. The registry tells where it was installed, which may be on another machine;
    None once it is not installed any more.
    """

    id: UUID
    name: str
    version: str
    kind: str
    checkpoint_hash: str | None
    local_path: str | None
    size_bytes: int
    metadata: dict[str, Any]
    files: tuple[StepFile, ...] = ()

    @property
    def reference(self) -> str:
        """What it is called, whatever other versions there are."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class StepLora:
    """A LoRA and how much of it is added."""

    model: StepModel
    weight: float


@dataclass(frozen=True)
class Companions:
    """What is loaded beside a checkpoint. ``missing`` are names that the registry does not know any more."""

    loras: tuple[StepLora, ...] = ()
    vae: StepModel | None = None
    missing: tuple[str, ...] = ()


_FILES = (
    select(func.json_agg(func.json_build_array(ModelFileRow.path, ModelFileRow.size, ModelFileRow.sha256)))
    .where(ModelFileRow.model_id == ModelRow.id)
    .correlate(ModelRow)
    .scalar_subquery()
)

STEP_MODEL = (
    ModelRow.id,
    ModelRow.name,
    ModelRow.version,
    ModelRow.kind,
    ModelRow.checkpoint_hash,
    ModelRow.local_path,
    ModelRow.size_bytes,
    ModelRow.metadata_json,
    ModelRow.installed,
    _FILES.label("files"),
)
"""The columns that ``step_model`` reads."""


def step_model(row: Any) -> StepModel | None:
    """The model in a row of ``STEP_MODEL``; None where there is none."""
    if row.id is None:
        return None
    return StepModel(
        id=row.id,
        name=row.name,
        version=row.version,
        kind=row.kind,
        checkpoint_hash=row.checkpoint_hash,
        local_path=row.local_path if row.installed else None,
        size_bytes=row.size_bytes,
        metadata=row.metadata_json,
        files=tuple(sorted((StepFile(*file) for file in row.files or []), key=lambda file: file.path)),
    )


def hold_companions(params: Mapping[str, Any]) -> Select[str, str] | None:
    """A query for those that ``params`` name which keeps them from being removed until the transaction is over.

    A model's foreign key does the same for a job's checkpoint. None where they name none.
    """
    wanted = named_companions(params)
    if not wanted:
        return None
    there = select(ModelRow.name, ModelRow.version).where(_is_one_of(wanted), ModelRow.installed)
    return there.with_for_update(read=True, key_share=True)


def named_companions(params: Mapping[str, Any]) -> list[str]:
    """LoRAs and VAE, each as name@version."""
    vae: str | None = params.get("vae")
    return [*(lora["id"] for lora in params.get("loras") or []), *([vae] if vae else [])]


def read_companions(connection: Connection, params: Mapping[str, Any]) -> Companions:
    """Those that ``params`` name, each as name@version."""
    loras: list[dict[str, Any]] = params.get("loras") or []
    vae: str | None = params.get("vae")
    wanted = named_companions(params)
    if not wanted:
        return Companions()
    rows = connection.execute(select(*STEP_MODEL).where(_is_one_of(wanted)))
    found = {f"{model.name}@{model.version}": model for row in rows if (model := step_model(row)) is not None}
    return Companions(
        loras=tuple(StepLora(found[lora["id"]], float(lora["weight"])) for lora in loras if lora["id"] in found),
        vae=found.get(vae) if vae else None,
        missing=tuple(reference for reference in wanted if reference not in found),
    )


def models_of_step(connection: Connection, step_id: UUID) -> list[UUID]:
    """The models that a step draws with: its job's, the LoRAs and the VAE beside it."""
    query = select(JobRow.model_id, JobRow.params_json).join(StepRow, StepRow.job_id == JobRow.id)
    row = connection.execute(query.where(StepRow.id == step_id)).one_or_none()
    if row is None:
        return []
    named = named_companions(row.params_json)
    beside = connection.scalars(select(ModelRow.id).where(_is_one_of(named))).all() if named else []
    return [*filter(None, [row.model_id]), *beside]


def _is_one_of(references: list[str]) -> ColumnElement[bool]:
    pairs = [tuple(reference.rpartition("@")[::2]) for reference in references]
    return tuple_(ModelRow.name, ModelRow.version).in_(pairs)
