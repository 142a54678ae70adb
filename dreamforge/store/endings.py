"""The end of a step: from its attempt's outcome to the states of step and job, in one transaction."""

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, select, update

from dreamforge.errors import LeaseLost
from dreamforge.jobs.cancellation import job_after
from dreamforge.jobs.events import (
    Event,
    JobFailed,
    JobSucceeded,
    StepCancelled,
    StepFailed,
    StepRescued,
    StepRetrying,
    StepSucceeded,
)
from dreamforge.jobs.job import ItemStatus, JobStatus, StepStatus, legal_step_predecessors
from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.jobs.retry import Budget, Retry, RetryPolicy
from dreamforge.jobs.verdict import Circumstances, Verdict, decide
from dreamforge.store import events
from dreamforge.store.cancellations import cancel_job, cancel_latency_ms, cancel_steps
from dreamforge.store.engine import database_errors
from dreamforge.store.fence import Fence, hold
from dreamforge.store.tables import ItemRow, JobRow, StepRow
from dreamforge.store.transitions import move_job, queue_step_again


@dataclass(frozen=True)
class RetryRules:
    """What decides whether there is another attempt, and when. ``draw`` gives jitter from 0 to 1."""

    policy: RetryPolicy = field(default_factory=RetryPolicy)
    draw: Callable[[], float] = random.random


RULES = RetryRules()
"""Those of a service whose settings say nothing else."""


class EndingStore:
    """Finalizes steps, for whoever lives to do it."""

    def __init__(self, *, engine: Engine, rules: RetryRules = RULES) -> None:
        self._engine = engine
        self._rules = rules

    def finalize(self, fence: Fence, *, lost: Failure | None = None) -> Verdict:
        """End the step and, with it or by its success, the job; or queue the step for another attempt.

        Decides from the stored outcome; ``lost`` is why there may be none. Raises ``LeaseLost`` when the attempt was
        replaced or already finalized.
        """
        with database_errors(), self._engine.begin() as connection:
            hold(connection, fence)
            return end_attempt(connection, fence, lost=lost, rules=self._rules)


def end_attempt(connection: Connection, fence: Fence, *, lost: Failure | None, rules: RetryRules) -> Verdict:
    """What ``EndingStore.finalize`` does, in a transaction that holds the fence."""
    step = _read(connection, fence)
    outcome = Outcome.from_json(step.outcome_json) if step.outcome_json else Outcome(lost) if lost else None
    verdict = decide(
        outcome,
        Circumstances(
            items_missing=_items_missing(connection, fence.step_id),
            cancel_requested=step.cancel_requested,
            spent={Budget.FAILURES: step.failures, Budget.CRASHES: step.crashes, Budget.RESCUES: step.rescues},
            policy=rules.policy,
            jitter=rules.draw(),
        ),
    )
    if verdict.retry is not None:
        _queue_again(connection, fence, verdict.retry, name=step.name)
        return verdict
    _end_step(connection, fence, verdict, name=step.name)
    is_last = step.position == step.last_position
    match job_after(verdict.status, is_last=is_last, cancel_requested=step.cancel_requested):
        case JobStatus.SUCCEEDED:
            _succeed_job(connection, fence)
        case JobStatus.CANCELLED:
            cancel_job(connection, fence.job_id)
        case JobStatus.FAILED if verdict.failure:
            _fail_job(connection, fence, verdict.failure)
        case _:
            _queue_next(connection, fence, position=step.position)
    return verdict


def must_end(connection: Connection, fence: Fence) -> bool:
    """True for a step that another attempt has no use for: an outcome is there, or every item, or a cancel."""
    step = _read(connection, fence)
    return bool(step.outcome_json or step.cancel_requested or not _items_missing(connection, fence.step_id))


def _read(connection: Connection, fence: Fence) -> Row[*tuple[Any, ...]]:
    last = select(func.max(StepRow.position)).where(StepRow.job_id == fence.job_id).scalar_subquery()
    query = (
        select(
            StepRow.outcome_json,
            StepRow.name,
            StepRow.position,
            StepRow.failures,
            StepRow.crashes,
            StepRow.rescues,
            last.label("last_position"),
            JobRow.cancel_requested_at.is_not(None).label("cancel_requested"),
        )
        .join(JobRow, JobRow.id == StepRow.job_id)
        .where(StepRow.id == fence.step_id)
    )
    return connection.execute(query).one()


def _items_missing(connection: Connection, step_id: uuid.UUID) -> int:
    # Not by artifacts: an item that is an image is finished in the transaction that writes its artifact, and a model
    # that is downloaded has none.
    missing = select(func.count()).where(ItemRow.step_id == step_id, ItemRow.status != ItemStatus.SUCCEEDED)
    return connection.execute(missing).scalar_one()


def _queue_again(connection: Connection, fence: Fence, retry: Retry, *, name: str) -> None:
    due_in = timedelta(seconds=retry.seconds)
    values: dict[str, Any] = {"next_attempt_at": func.now() + due_in if due_in else None}
    if retry.budget is not None:
        values[retry.budget.value] = retry.spent
    if queue_step_again(connection, fence.step_id, **values) is None:
        raise LeaseLost(f"step {fence.step_id} cannot be queued again")
    if retry.budget is None or retry.budget is Budget.RESCUES:
        event: Event = StepRescued(step=name, reason=retry.failure.code)
    else:
        event = StepRetrying(
            step=name,
            error=retry.failure.as_json(),
            budget=retry.budget,
            spent=retry.spent,
            seconds=round(retry.seconds, 3),
        )
    _append(connection, fence, event)


def _end_step(connection: Connection, fence: Fence, verdict: Verdict, *, name: str) -> None:
    failure = verdict.failure.as_json() if verdict.failure else None
    result = connection.execute(
        update(StepRow)
        .where(StepRow.id == fence.step_id, StepRow.status.in_(legal_step_predecessors(verdict.status)))
        .values(
            status=verdict.status,
            finished_at=func.clock_timestamp(),
            error_json=failure,
            lease_token=None,
            lease_expires_at=None,
        )
    )
    if result.rowcount != 1:
        raise LeaseLost(f"step {fence.step_id} cannot become {verdict.status}")
    if failure:
        event = StepFailed(step=name, error=failure)
    elif verdict.status is StepStatus.CANCELLED:
        event = StepCancelled(step=name, cancel_latency_ms=cancel_latency_ms(connection, fence.job_id))
    else:
        event = StepSucceeded(step=name)
    _append(connection, fence, event)


def _queue_next(connection: Connection, fence: Fence, *, position: int) -> None:
    connection.execute(
        update(StepRow)
        .where(
            StepRow.job_id == fence.job_id,
            StepRow.position == position + 1,
            StepRow.status.in_(legal_step_predecessors(StepStatus.QUEUED)),
        )
        .values(status=StepStatus.QUEUED)
    )


def _succeed_job(connection: Connection, fence: Fence) -> None:
    move_job(connection, fence.job_id, JobStatus.SUCCEEDED, progress=1.0)
    done = connection.execute(select(JobRow.items_done).where(JobRow.id == fence.job_id)).scalar_one()
    _append(connection, fence, JobSucceeded(items_done=done))


def _fail_job(connection: Connection, fence: Fence, failure: Failure) -> None:
    cancel_steps(connection, fence.job_id, latency=cancel_latency_ms(connection, fence.job_id))
    move_job(connection, fence.job_id, JobStatus.FAILED, error_json=failure.as_json())
    _append(connection, fence, JobFailed(error=failure.as_json()))


def _append(connection: Connection, fence: Fence, event: Event) -> None:
    connection.execute(*events.append(event, job_id=fence.job_id, step_id=fence.step_id, attempt=fence.attempt))
