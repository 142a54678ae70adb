"""A person's retry: a job that failed or was cancelled is queued again, and keeps the images it has."""

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Text, literal, select, update

from dreamforge.errors import Conflict
from dreamforge.jobs.events import JobQueued
from dreamforge.jobs.job import (
    JobStatus,
    JobType,
    Lane,
    StepStatus,
    legal_predecessors,
    legal_step_predecessors,
)
from dreamforge.store import events
from dreamforge.store.companions import hold_companions, named_companions
from dreamforge.store.step_calls import RUNG
from dreamforge.store.tables import JobRow, ModelRow, StepRow
from dreamforge.store.transitions import lay_down_items, move_job

_ENDED = tuple(status for status in legal_step_predecessors(StepStatus.QUEUED) if status.is_terminal)


@dataclass(frozen=True)
class QueuedStep:
    """The step that a retry has made due. ``attempt`` is that of its last run."""

    id: uuid.UUID
    name: str
    lane: Lane
    attempt: int


def retry_job(connection: Connection, job_id: uuid.UUID, *, user_id: str) -> QueuedStep | None:
    """Queue the job again; None when this user has no such job.

    The first step that has not succeeded is due, those behind it wait for it, and each has its whole budget again.
    Attempts go on being counted, and progress stays. Raises ``Conflict`` for a job that has not failed and was not
    cancelled, and for one that names a model that was removed.
    """
    job = connection.execute(
        select(JobRow.status, JobRow.type, JobRow.model_id, JobRow.params_json)
        .where(JobRow.id == job_id, JobRow.user_id == user_id)
        .with_for_update()
    ).one_or_none()
    if job is None:
        return None
    status = job.status
    if status not in legal_predecessors(JobStatus.QUEUED):
        raise Conflict(
            f"Only a job that failed or was cancelled can be retried; this one is {status}.",
            details={"status": status},
            job_id=job_id,
        )
    steps = connection.execute(
        select(StepRow.id, StepRow.name, StepRow.lane, StepRow.attempt)
        .where(StepRow.job_id == job_id, StepRow.status.in_(_ENDED))
        .order_by(StepRow.position)
        .with_for_update()
    ).all()
    if not steps:
        raise Conflict(
            "Every step of the job has succeeded: there is nothing to retry.",
            details={"status": status},
            job_id=job_id,
        )
    if gone := _removed(connection, job):
        raise Conflict(f"{gone} was removed: import it again, and then retry.", job_id=job_id)
    first, *later = steps
    _renew_step(connection, first.id, StepStatus.QUEUED)
    for step in later:
        _renew_step(connection, step.id, StepStatus.WAITING)
    move_job(connection, job_id, JobStatus.QUEUED, cancel_requested_at=None, error_json=None, finished_at=None)
    connection.execute(*events.append(JobQueued(reason="retry"), job_id=job_id))
    return QueuedStep(id=first.id, name=first.name, lane=Lane(first.lane), attempt=first.attempt)


def _removed(connection: Connection, job: Any) -> str | None:
    """A model that the job names and that is not there any more; those that are stay until the transaction is over."""
    if job.type == JobType.MODEL_DOWNLOAD:
        # It brings its own.
        return None
    held = select(ModelRow.installed).where(ModelRow.id == job.model_id).with_for_update(read=True, key_share=True)
    if connection.scalar(held) is not True:
        return "The job's model"
    companions = hold_companions(job.params_json)
    if companions is None:
        return None
    there = {f"{row.name}@{row.version}" for row in connection.execute(companions)}
    gone = sorted(set(named_companions(job.params_json)) - there)
    return f"The model {gone[0]}" if gone else None


def _renew_step(connection: Connection, step_id: uuid.UUID, status: StepStatus) -> None:
    connection.execute(
        update(StepRow)
        .where(StepRow.id == step_id, StepRow.status.in_(legal_step_predecessors(status)))
        .values(
            status=status,
            failures=0,
            crashes=0,
            rescues=0,
            next_attempt_at=None,
            lease_token=None,
            lease_expires_at=None,
            cancel_seen_at=None,
            started_at=None,
            finished_at=None,
            outcome_json=None,
            error_json=None,
            # The memory that was missing may be there now.
            metadata_json=StepRow.metadata_json.op("-")(literal(RUNG, Text)),
        )
    )
    lay_down_items(connection, step_id)
