"""Jobs as the API sees them: submit, read, cancel, retry, delete; their artifacts and their events."""

import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.errors import ForeignKeyViolation
from sqlalchemy import Row, insert, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert as insert_or_skip
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from dreamforge.errors import DatabaseUnavailable, UnknownModel
from dreamforge.jobs.cancellation import CancelAnswer
from dreamforge.jobs.events import JobQueued
from dreamforge.jobs.job import JobStatus, JobType, Lane, Priority, StepStatus
from dreamforge.jobs.plan import PlannedStep, plan
from dreamforge.store import events
from dreamforge.store.cancellations import request_cancel
from dreamforge.store.companions import hold_companions, named_companions
from dreamforge.store.deletion import delete_job
from dreamforge.store.engine import allow_statements, in_time
from dreamforge.store.eta import eta_seconds
from dreamforge.store.idempotency import IdempotencyKey, clear_expired_key, job_of_key, require_same_request
from dreamforge.store.listing import JobFilter, JobPlace, item_counts_of, page_of_jobs, steps_of
from dreamforge.store.queue_positions import queue_positions
from dreamforge.store.retrying import QueuedStep, retry_job
from dreamforge.store.tables import ArtifactRow, EventRow, ItemRow, JobRow, StepRow

_EVENT_PAGE = 1000
_KEY_TRIES = 3
DELETION_DEADLINE = 10.0
"""Seconds that it may take to delete a job, which may have very many events."""


@dataclass(frozen=True)
class NewJob:
    """A validated job with everything resolved. ``step_ids`` go with ``steps``, one to one."""

    id: uuid.UUID
    type: JobType
    priority: Priority
    model_id: uuid.UUID | None
    count: int
    params: dict[str, Any]
    options: dict[str, Any]
    metadata: dict[str, str]
    request_id: str
    steps: tuple[PlannedStep, ...]
    step_ids: tuple[uuid.UUID, ...]
    user_id: str = "default"
    key: IdempotencyKey | None = None


@dataclass(frozen=True)
class JobRecord:
    """A job with its steps, in order, and what its progress is told by.

    ``queue_position`` is for a job that waits, from 1; ``eta_seconds`` for one that runs. None where it is not known.
    """

    job: JobRow
    steps: Sequence[StepRow]
    items_total: int
    stage: str | None
    queue_position: int | None
    eta_seconds: float | None


@dataclass(frozen=True)
class JobPage:
    """Jobs, newest first. ``more`` when there are others behind the last."""

    jobs: Sequence[JobRecord]
    more: bool


@dataclass(frozen=True)
class ArtifactPage:
    """Artifacts in the order of their steps and items. ``more`` when there are others behind the last."""

    artifacts: Sequence[Row[ArtifactRow, int]]
    more: bool


class JobStore:
    """Jobs, for the API. Raises ``DatabaseUnavailable`` when Postgres is away."""

    def __init__(self, *, engine: AsyncEngine) -> None:
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)
        # A job is read in several statements: of one moment, or its step would be over before it, or gone. That costs
        # nothing: the level goes with the BEGIN.
        of_one_moment = engine.execution_options(isolation_level="REPEATABLE READ")
        self._reading = async_sessionmaker(of_one_moment, expire_on_commit=False)

    async def submit(self, new: NewJob) -> JobRecord:
        """Write the job, its steps, its items and `job.queued` in one transaction; the job as it is then.

        When the key stands for an earlier job, that one: nothing is written. Raises ``IdempotencyKeyReused`` when the
        key came with another body, ``UnknownModel`` when one that it names was removed meanwhile.
        """
        for _ in range(_KEY_TRIES):
            async with in_time(), self._sessions.begin() as session:
                if await _insert(session, new):
                    return await _record_of(session, new.id)
                # Not of one moment: that moment would be before the other job was there.
                if (earlier := await _replay(session, new)) is not None:
                    return earlier
        raise DatabaseUnavailable("The job that has this Idempotency-Key was just being deleted; try again.")

    async def replay(self, key: IdempotencyKey, *, user_id: str = "default") -> JobRecord | None:
        """The job that the key stands for, as it is now; None for a new key. Raises ``IdempotencyKeyReused``."""
        async with in_time(), self._reading() as session:
            return await _job_of_key(session, key, user_id=user_id)

    async def find(self, job_id: uuid.UUID, *, user_id: str = "default") -> JobRecord | None:
        """The job, or None when this user has no such job."""
        async with in_time(), self._reading() as session:
            job = await session.scalar(select(JobRow).where(JobRow.id == job_id, JobRow.user_id == user_id))
            if job is None:
                return None
            (record,) = await _records(session, [job])
            return record

    async def list(self, wanted: JobFilter, *, after: JobPlace | None, limit: int, user_id: str = "default") -> JobPage:
        """A page of this user's jobs behind ``after``, newest first."""
        async with in_time(), self._reading() as session:
            query = page_of_jobs(wanted, user_id=user_id, after=after, limit=limit + 1)
            rows: Sequence[JobRow] = (await session.scalars(query)).all()
            return JobPage(jobs=await _records(session, rows[:limit]), more=len(rows) > limit)

    async def cancel(self, job_id: uuid.UUID, *, user_id: str = "default") -> CancelAnswer | None:
        """Ask for the end of a job, once; see ``CancelAnswer``. None when this user has no such job."""
        async with in_time(), self._sessions.begin() as session:
            connection = await session.connection()
            return await connection.run_sync(request_cancel, job_id, user_id=user_id)

    async def retry(self, job_id: uuid.UUID, *, user_id: str = "default") -> QueuedStep | None:
        """Queue a failed or cancelled job again; the step that is due. None when this user has no such job.

        Raises ``Conflict`` for a job in any other state.
        """
        async with in_time(), self._sessions.begin() as session:
            connection = await session.connection()
            return await connection.run_sync(retry_job, job_id, user_id=user_id)

    async def delete(self, job_id: uuid.UUID, *, user_id: str = "default") -> Sequence[str] | None:
        """Delete a job that is over; the keys of its objects. None when this user has no such job.

        Raises ``Conflict`` for a job that is not over.
        """
        async with in_time(DELETION_DEADLINE), self._sessions.begin() as session:
            async with in_time():
                connection = await session.connection()
                await allow_statements(connection, seconds=DELETION_DEADLINE)
            return await connection.run_sync(delete_job, job_id, user_id=user_id)

    async def is_over(self, job_id: uuid.UUID) -> bool:
        """True once the job is terminal, or gone. One look by its key."""
        async with in_time(), self._sessions() as session:
            status = await session.scalar(select(JobRow.status).where(JobRow.id == job_id))
        return status is None or JobStatus(status).is_terminal

    async def artifact(self, artifact_id: uuid.UUID, *, user_id: str = "default") -> ArtifactRow | None:
        """The artifact, or None when this user has no such artifact."""
        query = (
            select(ArtifactRow)
            .join(JobRow, JobRow.id == ArtifactRow.job_id)
            .where(ArtifactRow.id == artifact_id, JobRow.user_id == user_id)
        )
        async with in_time(), self._sessions() as session:
            return await session.scalar(query)

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
        async with in_time(), self._sessions() as session:
            rows = (await session.execute(query)).all()
        return ArtifactPage(artifacts=rows[:limit], more=len(rows) > limit)

    async def events(self, job_id: uuid.UUID, wanted: events.EventFilter) -> AsyncGenerator[events.EventRecord]:
        """Every event of the job that fits ``wanted``, oldest first, read page by page."""
        while True:
            async with in_time(), self._sessions() as session:
                query = events.reading(job_id, wanted, limit=_EVENT_PAGE)
                rows: Sequence[EventRow] = (await session.scalars(query)).all()
            for row in rows:
                yield events.record_of(row)
            if len(rows) < _EVENT_PAGE:
                return
            wanted = events.EventFilter(rows[-1].seq, wanted.levels, wanted.codes, wanted.item_index)

    async def ping(self) -> None:
        """Return when Postgres answers, and has tables."""
        async with in_time(), self._sessions() as session:
            await session.execute(text("SELECT FROM jobs LIMIT 0"))


async def _insert(session: AsyncSession, new: NewJob) -> bool:
    """False when another job has the key."""
    companions = hold_companions(new.params)
    if companions is not None:
        there = {f"{row.name}@{row.version}" for row in await session.execute(companions)}
        if gone := sorted(set(named_companions(new.params)) - there):
            raise UnknownModel(f"The model {gone[0]} was just removed.", details={"model_id": gone[0]})
    if new.key is not None:
        await session.execute(clear_expired_key(new.key, user_id=new.user_id))
    # A first use that is not committed yet is waited for.
    job = insert_or_skip(JobRow).on_conflict_do_nothing(index_elements=["user_id", "idempotency_key_hash"])
    try:
        id = await session.scalar(job.values(_job_values(new)).returning(JobRow.id))
    except IntegrityError as error:
        if isinstance(error.orig, ForeignKeyViolation):
            raise UnknownModel("The model was just removed.") from error
        raise
    if id is None:
        return False
    await session.execute(insert(StepRow), _step_values(new))
    await session.execute(insert(ItemRow), _item_values(new))
    await session.execute(*events.append(JobQueued(reason="submitted"), job_id=new.id))
    return True


async def _replay(session: AsyncSession, new: NewJob) -> JobRecord | None:
    return None if new.key is None else await _job_of_key(session, new.key, user_id=new.user_id)


async def _job_of_key(session: AsyncSession, key: IdempotencyKey, *, user_id: str) -> JobRecord | None:
    job = await session.scalar(job_of_key(key, user_id=user_id))
    if job is None:
        return None
    require_same_request(key, job)
    (record,) = await _records(session, [job])
    return record


async def _record_of(session: AsyncSession, job_id: uuid.UUID) -> JobRecord:
    job = (await session.scalars(select(JobRow).where(JobRow.id == job_id))).one()
    (record,) = await _records(session, [job])
    return record


async def _records(session: AsyncSession, jobs: Sequence[JobRow]) -> Sequence[JobRecord]:
    ids = [job.id for job in jobs]
    steps: Sequence[StepRow] = (await session.scalars(steps_of(ids))).all()
    counts = {row.job_id: row for row in await session.execute(item_counts_of(ids))}
    places = await _places(session, [job for job in jobs if job.status == JobStatus.QUEUED])
    etas = await eta_seconds(session, [job.id for job in jobs if job.status == JobStatus.RUNNING])
    return [
        JobRecord(
            job=job,
            steps=[step for step in steps if step.job_id == job.id],
            items_total=counts[job.id].total if job.id in counts else 0,
            stage=counts[job.id].stages[0] if job.id in counts and counts[job.id].stages else None,
            queue_position=places.get(job.id),
            eta_seconds=etas.get(job.id),
        )
        for job in jobs
    ]


async def _places(session: AsyncSession, queued: Sequence[JobRow]) -> dict[uuid.UUID, int]:
    lanes = {job.id: plan(JobType(job.type), count=job.count)[0].lane for job in queued}
    places: dict[uuid.UUID, int] = {}
    for lane in Lane:
        places |= await queue_positions(session, [id for id, own in lanes.items() if own is lane], lane=lane)
    return places


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
        "idempotency_key_hash": new.key.key_hash if new.key else None,
        "request_fingerprint": new.key.fingerprint if new.key else None,
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
