"""How far a job and each of its images is, read in one statement: one snapshot, in which the numbers fit together.

Besides the time to go, which is reckoned from a look of its own.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from dreamforge.jobs.job import ItemStatus, JobStatus, StepStatus
from dreamforge.store.engine import in_time
from dreamforge.store.eta import eta_seconds

_PROGRESS = text(
    """
    SELECT jobs.status AS job_status, jobs.progress AS job_progress, jobs.items_done, jobs.event_seq,
           steps.name, steps.status AS step_status,
           items.item_index, items.status, items.progress, items.stage, items.seed, items.started_at,
           artifacts.id AS artifact_id
    FROM jobs
    LEFT JOIN steps ON steps.job_id = jobs.id
    LEFT JOIN items ON items.step_id = steps.id
    LEFT JOIN artifacts ON artifacts.step_id = items.step_id AND artifacts.item_index = items.item_index
    WHERE jobs.id = :job_id AND jobs.user_id = :user_id
    ORDER BY steps.position, items.item_index
    """
)


@dataclass(frozen=True)
class ItemState:
    """One image. ``status`` is its own or, where it is unfinished and nobody draws it, one that its step gives it."""

    item_index: int
    step: str
    status: str
    fraction: float
    stage: str | None
    seed: int | None
    artifact_id: uuid.UUID | None


@dataclass(frozen=True)
class JobState:
    """A job and its images, in the order of the steps. ``stage`` is that of the image that was begun last."""

    status: JobStatus
    fraction: float
    items_done: int
    stage: str | None
    eta_seconds: float | None
    last_seq: int
    items: Sequence[ItemState]


class ProgressStore:
    """Progress, for the API. Raises ``DatabaseUnavailable`` when Postgres is away."""

    def __init__(self, *, engine: AsyncEngine) -> None:
        self._engine = engine

    async def find(self, job_id: uuid.UUID, *, user_id: str = "default") -> JobState | None:
        """The job's progress, or None when this user has no such job."""
        async with in_time(), AsyncSession(self._engine) as session:
            rows = (await session.execute(_PROGRESS, {"job_id": job_id, "user_id": user_id})).all()
            if not rows:
                return None
            seconds = await eta_seconds(session, [job_id])
        job = rows[0]
        items = [row for row in rows if row.item_index is not None]
        drawn = [row for row in items if _item_status(row) == ItemStatus.RUNNING and row.started_at is not None]
        return JobState(
            status=JobStatus(job.job_status),
            fraction=job.job_progress,
            items_done=job.items_done,
            stage=max(drawn, key=lambda row: row.started_at).stage if drawn else None,
            eta_seconds=seconds.get(job_id),
            last_seq=job.event_seq,
            items=[_item_state(row) for row in items],
        )


def _item_state(row: Row[*tuple[Any, ...]]) -> ItemState:
    return ItemState(
        item_index=row.item_index,
        step=row.name,
        status=_item_status(row),
        fraction=row.progress,
        stage=row.stage,
        seed=row.seed,
        artifact_id=row.artifact_id,
    )


def _item_status(row: Row[*tuple[Any, ...]]) -> str:
    """What an image's row says stands as its attempt left it: the step knows better whether anybody goes on with it."""
    if row.status == ItemStatus.SUCCEEDED or row.step_status == StepStatus.RUNNING:
        return row.status
    return row.step_status if StepStatus(row.step_status).is_terminal else ItemStatus.PENDING
