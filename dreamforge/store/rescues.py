"""Steps whose lease has run out: whoever held it is gone, or is too late."""

import uuid
from collections.abc import Collection

from psycopg.errors import QueryCanceled
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from dreamforge.errors import DreamForgeError
from dreamforge.jobs.outcome import Failure
from dreamforge.jobs.verdict import Verdict
from dreamforge.store.endings import RULES, RetryRules, end_attempt
from dreamforge.store.engine import database_errors, tells_of_absence
from dreamforge.store.fence import Fence

LONGEST_LEASE = 3600.0
"""Seconds that no setting exceeds."""
_LOCK = 0x0D4EA3F1
"""One rescuer at a time, for the length of a transaction."""

_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(:key)")

_NOW = text("SELECT extract(epoch FROM clock_timestamp())")

# A lease that ends later than anybody would write is one from before the database's clock was set back.
# The job row first, then the step. What somebody else holds just now is being written to: it is not lapsed for long.
_LAPSED = text(
    """
    SELECT jobs.id AS job_id, steps.id AS step_id, steps.attempt, steps.lease_token
    FROM jobs JOIN steps ON steps.job_id = jobs.id
    WHERE steps.status = 'running' AND steps.id != ALL(:skip)
      AND NOT steps.lease_expires_at BETWEEN now() AND now() + make_interval(secs => :longest)
    ORDER BY steps.lease_expires_at LIMIT 1
    FOR UPDATE OF jobs, steps SKIP LOCKED
    """
)

LOST = Failure("node_lost", "The step's dispatcher or its node was lost.")


class UnendableStep(Exception):
    """Ending the attempt has failed, and not because the database is away: ``step_id``."""

    def __init__(self, step_id: uuid.UUID) -> None:
        super().__init__(str(step_id))
        self.step_id = step_id


class RescueStore:
    """Rescues steps, for every dispatcher. Raises ``DatabaseUnavailable`` when Postgres is away."""

    def __init__(self, *, engine: Engine, rules: RetryRules = RULES) -> None:
        self._engine = engine
        self._rules = rules

    def rescue_one(self, *, skip: Collection[uuid.UUID] = ()) -> tuple[Fence, Verdict] | None:
        """End the attempt whose lease ran out first, or queue its step again. None when there is none to rescue.

        What the attempt has reported decides, as if its dispatcher lived; one that wakes up later finds its lease lost.
        Steps to ``skip`` are left alone. Raises ``UnendableStep`` for one that is to be skipped from now on.
        """
        with database_errors(), self._engine.begin() as connection:
            if not connection.execute(_TRY_LOCK, {"key": _LOCK}).scalar_one():
                return None
            fence = _lapsed(connection, skip)
            return None if fence is None else (fence, self._end(connection, fence))

    def now(self) -> float:
        """The database's clock, in seconds."""
        with database_errors(), self._engine.connect() as connection:
            return float(connection.execute(_NOW).scalar_one())

    def _end(self, connection: Connection, fence: Fence) -> Verdict:
        try:
            return end_attempt(connection, fence, lost=LOST, rules=self._rules)
        except DreamForgeError:
            raise
        except Exception as error:
            took_too_long = isinstance(error, DBAPIError) and isinstance(error.orig, QueryCanceled)
            if tells_of_absence(error) and not took_too_long:
                raise
            raise UnendableStep(fence.step_id) from error


def _lapsed(connection: Connection, skip: Collection[uuid.UUID]) -> Fence | None:
    row = connection.execute(_LAPSED, {"skip": list(skip), "longest": LONGEST_LEASE}).first()
    if row is None:
        return None
    return Fence(job_id=row.job_id, step_id=row.step_id, attempt=row.attempt, lease_token=row.lease_token)
