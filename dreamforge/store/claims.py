"""Claims and leases: what the dispatcher writes about a step."""

import uuid
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine, text, update

from dreamforge.errors import Cancelled, LeaseLost
from dreamforge.jobs.events import JobStarted, StepRescued
from dreamforge.jobs.job import JobStatus, Lane, legal_predecessors
from dreamforge.jobs.outcome import Failure
from dreamforge.store import events
from dreamforge.store.endings import RULES, RetryRules, end_attempt, must_end
from dreamforge.store.engine import database_errors
from dreamforge.store.fence import Fence, hold
from dreamforge.store.tables import JobRow
from dreamforge.store.transitions import queue_step_again

# Nobody is told to wait for more than a few minutes: a time beyond those is one from before the database's clock was
# set back. The same condition stands in queue_positions.py and statistics.py.
_CLAIM = text(
    """
    WITH best AS (
        SELECT steps.id, jobs.id AS job_id, jobs.status AS job_status, jobs.options_json, jobs.request_id
        FROM jobs JOIN steps ON steps.job_id = jobs.id
        WHERE steps.status = 'queued' AND steps.lane = :lane
          AND (steps.next_attempt_at IS NULL
               OR NOT steps.next_attempt_at BETWEEN now() AND now() + interval '10 minutes')
          AND jobs.status IN ('queued', 'running') AND jobs.cancel_requested_at IS NULL
        ORDER BY CASE jobs.priority WHEN 'high' THEN 0 WHEN 'normal' THEN 1 ELSE 2 END, jobs.created_at, jobs.id
        LIMIT 1
        FOR UPDATE OF jobs, steps SKIP LOCKED
    )
    UPDATE steps SET status = 'running', attempt = attempt + 1, lease_token = :lease_token,
        lease_expires_at = now() + make_interval(secs => :lease_seconds),
        next_attempt_at = NULL, last_write = 0, cancel_seen_at = NULL, started_at = NULL, finished_at = NULL,
        outcome_json = NULL, error_json = NULL
    FROM best WHERE steps.id = best.id
    RETURNING steps.id, steps.name, steps.attempt, best.job_id, best.job_status, best.options_json, best.request_id
    """
)

_RENEW_UNSTARTED = text(
    """
    UPDATE steps SET lease_expires_at = now() + make_interval(secs => :lease_seconds)
    WHERE id = :step_id AND attempt = :attempt AND lease_token = :lease_token
      AND status = 'running' AND started_at IS NULL
    """
)

_WHEREABOUTS = text(
    """
    SELECT metadata_json ->> 'node_id' AS node_id, CAST(metadata_json ->> 'supervisor_pid' AS int) AS pid,
        CAST(metadata_json ->> 'attempt' AS int) IS NOT DISTINCT FROM attempt AS has_arrived,
        started_at IS NOT NULL AS has_begun,
        outcome_json IS NOT NULL AND metadata_json -> 'holds_gpu' = 'true' AS has_reported FROM steps
    WHERE id = :step_id AND attempt = :attempt AND lease_token = :lease_token AND status = 'running'
    """
)

_CANCELLED_UNSTARTED = text(
    """
    SELECT 1 FROM steps JOIN jobs ON jobs.id = steps.job_id
    WHERE steps.id = :step_id AND steps.attempt = :attempt AND steps.lease_token = :lease_token
      AND steps.status = 'running' AND steps.started_at IS NULL AND jobs.cancel_requested_at IS NOT NULL
    """
)

_WITHDRAW = text(
    """
    UPDATE steps SET lease_token = :new_token
    WHERE id = :step_id AND attempt = :attempt AND lease_token = :lease_token
      AND status = 'running' AND started_at IS NULL
    """
)

# A lease that has run out is nobody's: what it holds up is waiting to be rescued.
_AHEAD = text(
    """
    SELECT count(DISTINCT job_id) FROM steps
    WHERE lane = :lane AND (status = 'queued' OR (status = 'running' AND lease_expires_at > now()))
    """
)

_DUE = text(
    """
    SELECT steps.id, steps.job_id, steps.name, steps.attempt, jobs.request_id
    FROM steps JOIN jobs ON jobs.id = steps.job_id
    WHERE steps.status = 'queued' AND steps.lane = :lane AND jobs.cancel_requested_at IS NULL
      AND (steps.next_attempt_at IS NULL OR NOT steps.next_attempt_at BETWEEN now() AND now() + interval '10 minutes')
    ORDER BY jobs.created_at LIMIT :limit
    """
)


@dataclass(frozen=True)
class Claim:
    """A step that is ours to run now. ``options`` are the job's."""

    fence: Fence
    name: str
    options: dict[str, Any]
    request_id: str


@dataclass(frozen=True)
class Whereabouts:
    """The process that runs a step: on which of Ray's nodes (None outside of Ray), by what number there.

    ``has_begun``: the lease is its own by now. ``has_reported``: it has nothing more to do with the step, and lasts on
    only to keep its GPU from others.
    """

    node_id: str | None
    pid: int
    has_begun: bool
    has_reported: bool


@dataclass(frozen=True)
class DueStep:
    """A queued step that nobody has claimed."""

    step_id: uuid.UUID
    job_id: uuid.UUID
    name: str
    attempt: int
    request_id: str


class ClaimStore:
    """Steps, for the dispatcher. Raises ``DatabaseUnavailable`` when Postgres is away."""

    def __init__(self, *, engine: Engine, rules: RetryRules = RULES) -> None:
        self._engine = engine
        self._rules = rules

    def claim(self, *, lane: Lane, lease_token: uuid.UUID, lease_seconds: float) -> Claim | None:
        """Take the best due step, or None. Only here is an attempt raised."""
        values = {"lane": lane, "lease_token": lease_token, "lease_seconds": lease_seconds}
        with database_errors(), self._engine.begin() as connection:
            row = connection.execute(_CLAIM, values).first()
            if row is None:
                return None
            fence = Fence(job_id=row.job_id, step_id=row.id, attempt=row.attempt, lease_token=lease_token)
            if row.job_status == JobStatus.QUEUED:
                _start_job(connection, fence)
        return Claim(fence=fence, name=row.name, options=row.options_json, request_id=row.request_id)

    def renew_unstarted(self, fence: Fence, *, lease_seconds: float) -> bool:
        """Renew the lease until the supervisor has taken over; False from then on, or when the lease is lost."""
        with database_errors(), self._engine.begin() as connection:
            result = connection.execute(_RENEW_UNSTARTED, {**fence.values(), "lease_seconds": lease_seconds})
            return result.rowcount == 1

    def whereabouts(self, fence: Fence) -> Whereabouts | None:
        """Where the attempt's supervisor is; None before it is anywhere. Raises ``LeaseLost``."""
        with database_errors(), self._engine.connect() as connection:
            row = connection.execute(_WHEREABOUTS, fence.values()).first()
        if row is None:
            raise LeaseLost(f"attempt {fence.attempt} of step {fence.step_id} no longer holds its lease")
        if not row.has_arrived:
            return None
        return Whereabouts(row.node_id, row.pid, bool(row.has_begun), bool(row.has_reported))

    def is_cancelled_unstarted(self, fence: Fence) -> bool:
        """True when the job is to be cancelled and no supervisor has taken over that would notice."""
        with database_errors(), self._engine.connect() as connection:
            return connection.execute(_CANCELLED_UNSTARTED, fence.values()).first() is not None

    def put_back(self, fence: Fence) -> None:
        """Queue the step again, uncounted: its dispatcher is leaving. Raises ``LeaseLost``.

        What has nothing left to do, or must not be queued because its job is being cancelled, ends here instead.
        """
        with database_errors(), self._engine.begin() as connection:
            hold(connection, fence)
            if must_end(connection, fence):
                lost = Failure(Cancelled.code, "The dispatcher stopped.")
                end_attempt(connection, fence, lost=lost, rules=self._rules)
            else:
                _queue_again(connection, fence)

    def due(self, *, lane: Lane, limit: int) -> list[DueStep]:
        """Queued steps whose time has come, oldest first."""
        with database_errors(), self._engine.connect() as connection:
            rows = connection.execute(_DUE, {"lane": lane, "limit": limit}).all()
        return [DueStep(row.id, row.job_id, row.name, row.attempt, row.request_id) for row in rows]

    def withdraw(self, fence: Fence, *, lease_token: uuid.UUID) -> Fence | None:
        """Take a claim away from its task before the supervisor has taken over; the fence for what is written next.

        None once the supervisor has: the step is its own. A supervisor that starts later finds its lease lost.
        """
        with database_errors(), self._engine.begin() as connection:
            result = connection.execute(_WITHDRAW, {**fence.values(), "new_token": lease_token})
        return replace(fence, lease_token=lease_token) if result.rowcount == 1 else None

    def jobs_ahead(self, *, lane: Lane = Lane.GPU) -> int:
        """How many jobs a new one of this lane would wait behind: with a step that is due, or that somebody runs."""
        with database_errors(), self._engine.connect() as connection:
            return connection.execute(_AHEAD, {"lane": lane}).scalar_one()


def _start_job(connection: Connection, fence: Fence) -> None:
    connection.execute(
        update(JobRow)
        .where(JobRow.id == fence.job_id, JobRow.status.in_(legal_predecessors(JobStatus.RUNNING)))
        .values(status=JobStatus.RUNNING, started_at=text("coalesce(started_at, now())"))
    )
    connection.execute(*events.append(JobStarted(), job_id=fence.job_id, step_id=fence.step_id, attempt=fence.attempt))


def _queue_again(connection: Connection, fence: Fence) -> None:
    event = StepRescued(step=queue_step_again(connection, fence.step_id) or "", reason="dispatcher_stopped")
    connection.execute(*events.append(event, job_id=fence.job_id, step_id=fence.step_id, attempt=fence.attempt))
