"""The moves of jobs and steps that more than one use case makes. Each goes through the table of legal transitions."""

import uuid
from typing import Any

from sqlalchemy import Connection, func, update

from dreamforge.jobs.job import ItemStatus, JobStatus, StepStatus, legal_predecessors, legal_step_predecessors
from dreamforge.store.tables import ItemRow, JobRow, StepRow

UNSTARTED = (StepStatus.WAITING, StepStatus.QUEUED)
"""Steps that nobody runs."""


def move_job(connection: Connection, job_id: uuid.UUID, status: JobStatus, **values: Any) -> None:
    """Give a job its next status, where that is legal, and ``values`` with it. The job row must be locked."""
    if status.is_terminal:
        # Not now(): a transaction may have begun before the one it waited for, and would end a job before its cancel.
        values["finished_at"] = func.clock_timestamp()
    connection.execute(
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.status.in_(legal_predecessors(status)))
        .values(status=status, **values)
    )


def queue_step_again(connection: Connection, step_id: uuid.UUID, **values: Any) -> str | None:
    """Take a step from the attempt that had it, so that another may claim it, and give it ``values``. Its name.

    None when it is not running. The job row and the step must be locked.
    """
    name = connection.scalar(
        update(StepRow)
        .where(StepRow.id == step_id, StepRow.status == StepStatus.RUNNING)
        .values(
            status=StepStatus.QUEUED,
            lease_token=None,
            lease_expires_at=None,
            started_at=None,
            outcome_json=None,
            **values,
        )
        .returning(StepRow.name)
    )
    lay_down_items(connection, step_id)
    return name


def lay_down_items(connection: Connection, step_id: uuid.UUID) -> None:
    """Note that nobody draws what was begun and not finished.

    Its seed stays, and its progress, which never goes down; its start does not, since the time in between is not the
    time it takes.
    """
    connection.execute(
        update(ItemRow)
        .where(ItemRow.step_id == step_id, ItemRow.status == ItemStatus.RUNNING)
        .values(status=ItemStatus.PENDING, stage=None, started_at=None)
    )


def cancel_unstarted_steps(connection: Connection, job_id: uuid.UUID) -> list[tuple[uuid.UUID, str, int]]:
    """Cancel the steps of a job that nobody runs: id, name and attempt of each, in order."""
    legal = [status for status in UNSTARTED if status in legal_step_predecessors(StepStatus.CANCELLED)]
    rows = connection.execute(
        update(StepRow)
        .where(StepRow.job_id == job_id, StepRow.status.in_(legal))
        .values(status=StepStatus.CANCELLED, finished_at=func.clock_timestamp(), next_attempt_at=None)
        .returning(StepRow.id, StepRow.name, StepRow.attempt, StepRow.position)
    ).all()
    return [(row.id, row.name, row.attempt) for row in sorted(rows, key=lambda row: row.position)]
