"""What an attempt needs to know about its step."""

import uuid
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Select, select

from dreamforge.jobs.job import ItemStatus
from dreamforge.jobs.presets import batch_size, preset_of
from dreamforge.store.companions import STEP_MODEL, Companions, StepModel, read_companions, step_model
from dreamforge.store.tables import ItemRow, JobRow, ModelRow, StepRow

RUNG = "rung"
"""Where a step's metadata say how far it has degraded."""


@dataclass(frozen=True)
class StepItem:
    """An item that is not finished. ``seed`` is set when an earlier attempt had begun to draw it."""

    index: int
    seed: int | None


@dataclass(frozen=True)
class StepCall:
    """Everything an attempt needs to know about its step.

    ``items`` are those still to be made; ``rung`` is where it stands on the memory ladder, 0 to
    ``memory_ladder.LAST_RUNG``: where its preset begins, or as far as it has degraded.
    """

    step: str
    job_type: str
    user_id: str
    params: dict[str, Any]
    options: dict[str, Any]
    model: StepModel | None
    items: tuple[StepItem, ...]
    rung: int = 0
    companions: Companions = field(default_factory=Companions)

    @property
    def batch_size(self) -> int:
        """Images that are denoised at once, at most."""
        return batch_size(preset_of(self.params), rung=self.rung)


def read_call(connection: Connection, step_id: uuid.UUID) -> StepCall:
    """The step's call, with the items that are not finished."""
    row = connection.execute(_call_of(step_id)).one()
    return StepCall(
        step=row.step,
        job_type=row.job_type,
        user_id=row.user_id,
        params=row.params_json,
        options=row.options_json,
        model=step_model(row),
        items=read_missing_items(connection, step_id),
        rung=max(row.rung or 0, preset_of(row.params_json).rung),
        companions=read_companions(connection, row.params_json),
    )


def read_missing_items(connection: Connection, step_id: uuid.UUID) -> tuple[StepItem, ...]:
    """The items that are not finished, in order."""
    rows = connection.execute(_missing_items(step_id)).all()
    return tuple(StepItem(index=row.item_index, seed=row.seed) for row in rows)


def _call_of(step_id: uuid.UUID) -> Select[*tuple[Any, ...]]:
    return (
        select(
            StepRow.name.label("step"),
            JobRow.type.label("job_type"),
            JobRow.user_id,
            JobRow.params_json,
            JobRow.options_json,
            *STEP_MODEL,
            StepRow.metadata_json[RUNG].as_integer().label("rung"),
        )
        .join(JobRow, JobRow.id == StepRow.job_id)
        .outerjoin(ModelRow, ModelRow.id == JobRow.model_id)
        .where(StepRow.id == step_id)
    )


def _missing_items(step_id: uuid.UUID) -> Select[*tuple[Any, ...]]:
    return (
        select(ItemRow.item_index, ItemRow.seed)
        .where(ItemRow.step_id == step_id, ItemRow.status != ItemStatus.SUCCEEDED)
        .order_by(ItemRow.item_index)
    )
