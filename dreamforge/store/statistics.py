"""Figures of the whole service, counted in Postgres: they do not depend on which replica counts, but on when.

``live`` touches what is not over yet, and heartbeats; its cost follows the backlog. ``totals`` touches everything that
was ever made, by indices where there are some; its cost follows the history.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from dreamforge.jobs.job import JobStatus, Lane, StepStatus
from dreamforge.store.engine import allow_statements, in_time
from dreamforge.store.heartbeats import Heartbeat, read_heartbeats

TOTALS_DEADLINE = 8.0
"""Seconds that counting the history may take. Nobody's answer waits so long for it."""


@dataclass(frozen=True)
class Backlog:
    """A lane's due steps: how many, and how many seconds the oldest has been due."""

    steps: int
    oldest_seconds: float


@dataclass(frozen=True)
class LiveFigures:
    """What goes on now."""

    jobs: Mapping[JobStatus, int]
    steps: Mapping[tuple[Lane, StepStatus], int]
    backlog: Mapping[Lane, Backlog]
    heartbeats: tuple[Heartbeat, ...]


@dataclass(frozen=True)
class TotalFigures:
    """What is over, and what came of it, as far as it is still stored."""

    jobs: Mapping[JobStatus, int]
    steps: Mapping[tuple[Lane, StepStatus], int]
    failures: Mapping[str, int]
    """Failed steps by code."""
    artifacts: int
    artifact_bytes: int


_JOBS = "SELECT status, count(*) FROM jobs WHERE status = ANY(:statuses) GROUP BY status"
_STEPS = "SELECT lane, status, count(*) FROM steps WHERE status = ANY(:statuses) GROUP BY lane, status"
# A step is due from its creation, which is its job's or its predecessor's end, or from the time a retry was set to.
_BACKLOG = """
    SELECT steps.lane, count(*),
           greatest(0, extract(
               epoch FROM now() - min(coalesce(steps.next_attempt_at, before.finished_at, jobs.created_at))))
    FROM steps
    JOIN jobs ON jobs.id = steps.job_id
    LEFT JOIN steps AS before ON before.job_id = steps.job_id AND before.position = steps.position - 1
    WHERE steps.status = 'queued'
      AND (steps.next_attempt_at IS NULL OR NOT steps.next_attempt_at BETWEEN now() AND now() + interval '10 minutes')
    GROUP BY steps.lane
"""
_FAILURES = """
    SELECT coalesce(error_json ->> 'code', 'internal'), count(*) FROM steps WHERE status = 'failed' GROUP BY 1
"""
_ARTIFACTS = "SELECT count(*), coalesce(sum(size_bytes), 0)::bigint FROM artifacts"


class StatisticsStore:
    """Counts, for the API."""

    def __init__(self, *, engine: AsyncEngine) -> None:
        self._engine = engine

    async def live(self) -> LiveFigures:
        """What goes on now."""
        async with in_time(), self._engine.connect() as connection:
            jobs = await _jobs(connection, [status for status in JobStatus if not status.is_terminal])
            steps = await _steps(connection, [status for status in StepStatus if not status.is_terminal])
            backlog = (await connection.execute(text(_BACKLOG))).all()
        return LiveFigures(
            jobs=jobs,
            steps=steps,
            backlog={Lane(lane): Backlog(count, max(0.0, float(age))) for lane, count, age in backlog},
            heartbeats=tuple(await read_heartbeats(self._engine)),
        )

    async def totals(self) -> TotalFigures:
        """What is over. The most expensive query here reads every artifact's row."""
        async with in_time(TOTALS_DEADLINE), self._engine.connect() as connection:
            await allow_statements(connection, seconds=TOTALS_DEADLINE)
            jobs = await _jobs(connection, [status for status in JobStatus if status.is_terminal])
            steps = await _steps(connection, [status for status in StepStatus if status.is_terminal])
            failures = (await connection.execute(text(_FAILURES))).all()
            artifacts, size = (await connection.execute(text(_ARTIFACTS))).one()
        return TotalFigures(
            jobs=jobs,
            steps=steps,
            failures={code: count for code, count in failures},
            artifacts=artifacts,
            artifact_bytes=size,
        )


async def _jobs(connection: AsyncConnection, statuses: list[JobStatus]) -> dict[JobStatus, int]:
    rows = (await connection.execute(text(_JOBS), {"statuses": [str(status) for status in statuses]})).all()
    return dict.fromkeys(statuses, 0) | {JobStatus(status): count for status, count in rows}


async def _steps(connection: AsyncConnection, statuses: list[StepStatus]) -> dict[tuple[Lane, StepStatus], int]:
    rows = (await connection.execute(text(_STEPS), {"statuses": [str(status) for status in statuses]})).all()
    none = {(lane, status): 0 for lane in Lane for status in statuses}
    return none | {(Lane(lane), StepStatus(status)): count for lane, status, count in rows}
