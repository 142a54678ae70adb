"""The end of a step: from its attempt's outcome to the states of step and job, in one transaction."""

import uuid
from typing import Any

from sqlalchemy import Connection, Engine, func, select, update

from dreamforge.errors import LeaseLost
from dreamforge.jobs.events import Event, JobFailed, JobSucceeded, StepFailed, StepSucceeded
from dreamforge.jobs.job import JobStatus, StepStatus, legal_predecessors, legal_step_predecessors
from dreamforge.jobs.outcome import Failure, Outcome, Verdict, decide
from dreamforge.store import events
from dreamforge.store.engine import database_errors
from dreamforge.store.fence import Fence, hold
from dreamforge.store.tables import ArtifactRow, ItemRow, JobRow, StepRow


class EndingStore:
    """Finalizes steps, for whoever lives to do it."""

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine

    def finalize(self, fence: Fence, *, lost: Failure | None = None) -> Verdict:
        """End the step and, with it or by its success, the job.

        Decides from the stored outcome; ``lost`` is why there may be none. Raises ``LeaseLost`` when the attempt was
        replaced or already finalized.
        """
        with database_errors(), self._engine.begin() as connection:
            hold(connection, fence)
            outcome_json, name, position = connection.execute(
                select(StepRow.outcome_json, StepRow.name, StepRow.position).where(StepRow.id == fence.step_id)
            ).one()
            outcome = Outcome.from_json(outcome_json) if outcome_json else Outcome(lost) if lost else None
            verdict = decide(outcome, items_missing=_items_missing(connection, fence.step_id))
            _end_step(connection, fence, verdict, name=name)
            if verdict.failure:
                _fail_job(connection, fence, verdict.failure)
            elif not _queue_next(connection, fence, position=position):
                _succeed_job(connection, fence)
        return verdict


def _items_missing(connection: Connection, step_id: uuid.UUID) -> int:
    items = select(func.count()).select_from(ItemRow).where(ItemRow.step_id == step_id).scalar_subquery()
    made = select(func.count()).select_from(ArtifactRow).where(ArtifactRow.step_id == step_id).scalar_subquery()
    return connection.execute(select(items - made)).scalar_one()


def _end_step(connection: Connection, fence: Fence, verdict: Verdict, *, name: str) -> None:
    failure = verdict.failure.as_json() if verdict.failure else None
    result = connection.execute(
        update(StepRow)
        .where(StepRow.id == fence.step_id, StepRow.status.in_(legal_step_predecessors(verdict.status)))
        .values(
            status=verdict.status,
            finished_at=func.now(),
            error_json=failure,
            lease_token=None,
            lease_expires_at=None,
        )
    )
    if result.rowcount != 1:
        raise LeaseLost(f"step {fence.step_id} cannot become {verdict.status}")
    _append(connection, fence, StepFailed(step=name, error=failure) if failure else StepSucceeded(step=name))


def _queue_next(connection: Connection, fence: Fence, *, position: int) -> bool:
    result = connection.execute(
        update(StepRow)
        .where(
            StepRow.job_id == fence.job_id,
            StepRow.position == position + 1,
            StepRow.status.in_(legal_step_predecessors(StepStatus.QUEUED)),
        )
        .values(status=StepStatus.QUEUED)
    )
    return result.rowcount == 1


def _succeed_job(connection: Connection, fence: Fence) -> None:
    _end_job(connection, fence, JobStatus.SUCCEEDED, progress=1.0)
    done = connection.execute(select(JobRow.items_done).where(JobRow.id == fence.job_id)).scalar_one()
    _append(connection, fence, JobSucceeded(items_done=done))


def _fail_job(connection: Connection, fence: Fence, failure: Failure) -> None:
    _end_job(connection, fence, JobStatus.FAILED, error_json=failure.as_json())
    connection.execute(
        update(StepRow)
        .where(StepRow.job_id == fence.job_id, StepRow.status == StepStatus.WAITING)
        .values(status=StepStatus.CANCELLED, finished_at=func.now())
    )
    _append(connection, fence, JobFailed(error=failure.as_json()))


def _end_job(connection: Connection, fence: Fence, status: JobStatus, **values: Any) -> None:
    connection.execute(
        update(JobRow)
        .where(JobRow.id == fence.job_id, JobRow.status.in_(legal_predecessors(status)))
        .values(status=status, finished_at=func.now(), **values)
    )


def _append(connection: Connection, fence: Fence, event: Event) -> None:
    connection.execute(*events.append(event, job_id=fence.job_id, step_id=fence.step_id, attempt=fence.attempt))
