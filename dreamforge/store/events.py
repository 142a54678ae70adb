"""The event log of a job: appending in the transaction of the state it reports, and reading."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Executable, Row, Select, bindparam, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncEngine

from dreamforge.jobs.events import Event
from dreamforge.jobs.job import JobStatus
from dreamforge.store.engine import in_time
from dreamforge.store.tables import EventRow, JobRow

# The counter is raised in the statement that writes the event: the job row's lock orders the writers, so whoever has
# read up to n has seen everything before n. A sequence would lose events to readers that tail it.
_APPEND = text(
    """
    WITH job AS (
        UPDATE jobs SET event_seq = event_seq + 1, updated_at = now() WHERE id = :job_id
        RETURNING id, event_seq, progress, items_done
    )
    INSERT INTO events (job_id, seq, step_id, attempt, code, level, payload_json, job_progress)
    SELECT job.id, job.event_seq, CAST(:step_id AS uuid), CAST(:attempt AS integer), :code, :level, :payload,
           jsonb_build_object(
               'fraction', job.progress,
               'items_done', job.items_done,
               'items_total', (SELECT count(*) FROM items JOIN steps ON steps.id = items.step_id
                               WHERE steps.job_id = job.id))
    FROM job
    """
).bindparams(bindparam("payload", type_=JSONB))

# One statement is one snapshot: a status and a counter go together with the events that led to them. The condition on
# the counter spares a job without news the look at its events.
_NEWS = text(
    """
    SELECT jobs.id AS job_id, jobs.user_id, jobs.status, jobs.event_seq,
           events.seq, events.ts, events.code, events.level, events.step_id, events.attempt,
           events.payload_json, events.job_progress
    FROM unnest(CAST(:job_ids AS uuid[]), CAST(:seqs AS bigint[])) AS place (job_id, seq)
    JOIN jobs ON jobs.id = place.job_id
    LEFT JOIN LATERAL (
        SELECT * FROM events
        WHERE events.job_id = place.job_id AND events.seq > place.seq AND jobs.event_seq > place.seq
        ORDER BY events.seq LIMIT :most
    ) AS events ON true
    ORDER BY jobs.id, events.seq
    """
)


def append(
    event: Event, *, job_id: uuid.UUID, step_id: uuid.UUID | None = None, attempt: int | None = None
) -> tuple[Executable, dict[str, Any]]:
    """The statement, and its values, that write ``event``. Execute it in the transaction of the state it reports."""
    values = {
        "job_id": job_id,
        "step_id": step_id,
        "attempt": attempt,
        "code": event.code,
        "level": event.level,
        "payload": event.payload(),
    }
    return _APPEND, values


@dataclass(frozen=True)
class EventFilter:
    """Which events to read: after a ``seq``, of some levels, codes, or one item."""

    after: int = 0
    levels: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    item_index: int | None = None

    def fits(self, event: "EventRecord") -> bool:
        """True when ``reading`` would read the event."""
        return (
            event.seq > self.after
            and (not self.levels or event.level in self.levels)
            and (not self.codes or event.code in self.codes)
            and (self.item_index is None or event.payload.get("item_index") == self.item_index)
        )


@dataclass(frozen=True)
class EventRecord:
    """One event as it was written."""

    seq: int
    ts: datetime
    code: str
    level: str
    job_id: uuid.UUID
    step_id: uuid.UUID | None
    attempt: int | None
    payload: dict[str, Any]
    progress: dict[str, Any]


def reading(job_id: uuid.UUID, wanted: EventFilter, *, limit: int) -> Select[EventRow]:
    """The query for a page of events, oldest first."""
    query = select(EventRow).where(EventRow.job_id == job_id, EventRow.seq > wanted.after)
    if wanted.levels:
        query = query.where(EventRow.level.in_(wanted.levels))
    if wanted.codes:
        query = query.where(EventRow.code.in_(wanted.codes))
    if wanted.item_index is not None:
        query = query.where(EventRow.payload_json["item_index"].as_integer() == wanted.item_index)
    return query.order_by(EventRow.seq).limit(limit)


def record_of(row: EventRow) -> EventRecord:
    """The value of a row."""
    return EventRecord(
        seq=row.seq,
        ts=row.ts,
        code=row.code,
        level=row.level,
        job_id=row.job_id,
        step_id=row.step_id,
        attempt=row.attempt,
        payload=row.payload_json,
        progress=row.job_progress,
    )


@dataclass(frozen=True)
class JobNews:
    """A job's events behind a place, and where the job stood when they were read.

    ``last_seq`` is the ``seq`` of the job's last event, which may lie behind those read.
    """

    user_id: str
    status: JobStatus
    last_seq: int
    events: list[EventRecord] = field(default_factory=list[EventRecord])


class EventFeed:
    """What has happened to jobs since somebody looked. Raises ``DatabaseUnavailable`` when Postgres is away."""

    def __init__(self, *, engine: AsyncEngine) -> None:
        # Nothing is written, and each statement is a transaction of its own: no BEGIN and no ROLLBACK around it.
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")

    async def user_of(self, job_id: uuid.UUID) -> str | None:
        """Whose the job is; None when there is no such job."""
        async with in_time(), self._engine.connect() as connection:
            return await connection.scalar(select(JobRow.user_id).where(JobRow.id == job_id))

    async def news(self, places: Mapping[uuid.UUID, int], *, most: int) -> dict[uuid.UUID, JobNews]:
        """The events behind a ``seq`` of each job, oldest first, at most ``most`` of each, in one statement.

        A job that is not there is left out.
        """
        values = {"job_ids": list(places), "seqs": list(places.values()), "most": most}
        async with in_time(), self._engine.connect() as connection:
            rows = (await connection.execute(_NEWS, values)).all()
        news: dict[uuid.UUID, JobNews] = {}
        for row in rows:
            job = news.get(row.job_id)
            if job is None:
                job = news[row.job_id] = JobNews(row.user_id, JobStatus(row.status), row.event_seq)
            if row.seq is not None:
                job.events.append(_record(row))
        return news


def _record(row: Row[*tuple[Any, ...]]) -> EventRecord:
    return EventRecord(
        seq=row.seq,
        ts=row.ts,
        code=row.code,
        level=row.level,
        job_id=row.job_id,
        step_id=row.step_id,
        attempt=row.attempt,
        payload=row.payload_json,
        progress=row.job_progress,
    )
