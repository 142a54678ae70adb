"""The event log of a job: appending in the transaction of the state it reports, and reading."""

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Executable, Select, bindparam, select, text
from sqlalchemy.dialects.postgresql import JSONB

from dreamforge.jobs.events import Event
from dreamforge.store.tables import EventRow

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
