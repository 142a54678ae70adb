"""Cancelling: the request, and the end of a job that was asked to end. Both hold the job row, then its steps."""

import uuid

from sqlalchemy import Connection, func, select, text, update

from dreamforge.jobs.cancellation import CancelAnswer, decide_cancel
from dreamforge.jobs.events import JobCancelled, JobCancelRequested, StepCancelled
from dreamforge.jobs.job import JobStatus, StepStatus
from dreamforge.store import events
from dreamforge.store.tables import JobRow, StepRow
from dreamforge.store.transitions import cancel_unstarted_steps, move_job

_LATENCY = text(
    """
    SELECT CAST(extract(epoch FROM GREATEST(clock_timestamp(), cancel_requested_at) - cancel_requested_at) * 1000
                AS bigint)
    FROM jobs WHERE id = :job_id
    """
)


def request_cancel(connection: Connection, job_id: uuid.UUID, *, user_id: str) -> CancelAnswer | None:
    """Ask for the end of a job, and end it when nobody runs it. None when this user has no such job."""
    status = connection.scalar(
        select(JobRow.status).where(JobRow.id == job_id, JobRow.user_id == user_id).with_for_update()
    )
    if status is None:
        return None
    # A claim that held the job has committed by now: this statement sees what it did to the step.
    steps = connection.scalars(
        select(StepRow.status).where(StepRow.job_id == job_id).order_by(StepRow.position).with_for_update()
    ).all()
    answer = decide_cancel(JobStatus(status), [StepStatus(step) for step in steps])
    if answer in {CancelAnswer.AT_ONCE, CancelAnswer.WHEN_STOPPED}:
        connection.execute(update(JobRow).where(JobRow.id == job_id).values(cancel_requested_at=func.now()))
        connection.execute(*events.append(JobCancelRequested(), job_id=job_id))
    if answer is CancelAnswer.AT_ONCE:
        cancel_job(connection, job_id)
    elif answer is CancelAnswer.WHEN_STOPPED:
        move_job(connection, job_id, JobStatus.CANCELLING)
    return answer


def cancel_job(connection: Connection, job_id: uuid.UUID) -> None:
    """End a job that was asked to end: the steps that nobody runs, then the job."""
    latency = cancel_latency_ms(connection, job_id)
    cancel_steps(connection, job_id, latency=latency)
    move_job(connection, job_id, JobStatus.CANCELLED)
    done = connection.execute(select(JobRow.items_done).where(JobRow.id == job_id)).scalar_one()
    connection.execute(*events.append(JobCancelled(items_done=done, cancel_latency_ms=latency or 0), job_id=job_id))


def cancel_steps(connection: Connection, job_id: uuid.UUID, *, latency: int | None) -> None:
    """Cancel the steps that nobody runs, each with its event."""
    for step_id, name, attempt in cancel_unstarted_steps(connection, job_id):
        event = StepCancelled(step=name, cancel_latency_ms=latency)
        connection.execute(*events.append(event, job_id=job_id, step_id=step_id, attempt=attempt))


def cancel_latency_ms(connection: Connection, job_id: uuid.UUID) -> int | None:
    """Milliseconds since the cancel was requested, by the database's clock; None when it was not."""
    return connection.execute(_LATENCY, {"job_id": job_id}).scalar_one()
