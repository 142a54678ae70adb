"""Jobs as the API sees them: submit one, read it, its artifacts and its events."""

import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, func, insert, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from dreamforge.jobs.events import JobQueued
from dreamforge.jobs.job import ItemStatus, JobStatus, JobType, Priority, StepStatus
from dreamforge.jobs.plan import PlannedStep
from dreamforge.store import events
from dreamforge.store.engine import database_errors
from dreamforge.store.tables import ArtifactRow, EventRow, ItemRow, JobRow, StepRow

_EVENT_PAGE = 1000


@dataclass(frozen=True)
class NewJob:
    """A validated job with everything resolved. ``step_ids`` go with ``steps``, one to one."""

    id: uuid.UUID
    type: JobType
    priority: Priority
    model_id: uuid.UUID
    count: int
    params: dict[str, Any]
    options: dict[str, Any]
    metadata: dict[str, str]
    request_id: str
    steps: tuple[PlannedStep, ...]
    step_ids: tuple[uuid.UUID, ...]
    user_id: str = "default"


@dataclass(frozen=True)
class JobRecord:
    """A job with its steps, in order, and the counts its progress is told by."""

    job: JobRow
    steps: Sequence[StepRow]
    items_total: int
    stage: str | None


@dataclass(frozen=True)
class ArtifactPage:
    """Artifacts in the order of their steps and items. ``more`` when there are others behind the last."""

    artifacts: Sequence[Row[ArtifactRow, int]]
    more: bool


class JobStore:
    """Jobs, for the API. Raises ``DatabaseUnavailable`` when Postgres is away."""

    def __init__(self, *, engine: AsyncEngine) -> None:
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)

    async def submit(self, new: NewJob) -> None:
        """Write the job, its steps, its items and `job.queued` in one transaction."""
        with database_errors():
            async with self._sessions.begin() as session:
                await session.execute(insert(JobRow).values(_job_values(new)))
                await session.execute(insert(StepRow), _step_values(new))
                await session.execute(insert(ItemRow), _item_values(new))
                await session.execute(*events.append(JobQueued(reason="submitted"), job_id=new.id))

    async def find(self, job_id: uuid.UUID, *, user_id: str = "default") -> JobRecord | None:
        """The job, or None when this user has no such job."""
        with database_errors():
            async with self._sessions() as session:
                job = await session.scalar(select(JobRow).where(JobRow.id == job_id, JobRow.user_id == user_id))
                if job is None:
                    return None
                steps = (
                    await session.scalars(select(StepRow).where(StepRow.job_id == job_id).order_by(StepRow.position))
                ).all()
                total, stage = await _item_counts(session, job_id)
                return JobRecord(job=job, steps=steps, items_total=total, stage=stage)

    async def artifacts(self, job_id: uuid.UUID, *, after: tuple[int, int] | None, limit: int) -> ArtifactPage:
        """A page of artifacts behind ``after`` = (step position, item index)."""
        query = (
            select(ArtifactRow, StepRow.position)
            .join(StepRow, StepRow.id == ArtifactRow.step_id)
            .where(ArtifactRow.job_id == job_id)
            .order_by(StepRow.position, ArtifactRow.item_index)
            .limit(limit + 1)
        )
        if after is not None:
            query = query.where(tuple_(StepRow.position, ArtifactRow.item_index) > after)
        with database_errors():
            async with self._sessions() as session:
                rows = (await session.execute(query)).all()
        return ArtifactPage(artifacts=rows[:limit], more=len(rows) > limit)

    async def events(self, job_id: uuid.UUID, wanted: events.EventFilter) -> AsyncIterator[events.EventRecord]:
        """Every event of the job that fits ``wanted``, oldest first, read page by page."""
        while True:
            with database_errors():
                async with self._sessions() as session:
                    query = events.reading(job_id, wanted, limit=_EVENT_PAGE)
                    rows: Sequence[EventRow] = (await session.scalars(query)).all()
            for row in rows:
                yield events.record_of(row)
            if len(rows) < _EVENT_PAGE:
                return
            wanted = events.EventFilter(rows[-1].seq, wanted.levels, wanted.codes, wanted.item_index)

    async def ping(self) -> None:
        """Return when Postgres answers."""
        with database_errors():
            async with self._sessions() as session:
                await session.execute(text("SELECT 1"))


async def _item_counts(session: AsyncSession, job_id: uuid.UUID) -> tuple[int, str | None]:
    items = select(ItemRow).join(StepRow, StepRow.id == ItemRow.step_id).where(StepRow.job_id == job_id)
    total = await session.scalar(select(func.count()).select_from(items.subquery()))
    stage = await session.scalar(
        items.with_only_columns(ItemRow.stage)
        .where(ItemRow.status == ItemStatus.RUNNING)
        .order_by(ItemRow.started_at.desc())
        .limit(1)
    )
    return total or 0, stage


def _job_values(new: NewJob) -> dict[str, Any]:
    return {
        "id": new.id,
        "type": new.type,
        "status": JobStatus.QUEUED,
        "priority": new.priority,
        "model_id": new.model_id,
        "count": new.count,
        "params_json": new.params,
        "options_json": new.options,
        "metadata_json": new.metadata,
        "request_id": new.request_id,
        "user_id": new.user_id,
    }


def _step_values(new: NewJob) -> list[dict[str, Any]]:
    return [
        {
            "id": step_id,
            "job_id": new.id,
            "name": step.name,
            "position": step.position,
            "lane": step.lane,
            "status": StepStatus.QUEUED if step.position == 0 else StepStatus.WAITING,
        }
        for step, step_id in zip(new.steps, new.step_ids, strict=True)
    ]


def _item_values(new: NewJob) -> list[dict[str, Any]]:
    return [
        {"step_id": step_id, "item_index": index}
        for step, step_id in zip(new.steps, new.step_ids, strict=True)
        for index in range(step.items)
    ]
