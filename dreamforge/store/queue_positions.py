"""Where queued jobs stand in line: the order in which ``store/claims.py`` takes due steps."""

import uuid
from collections.abc import Collection

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from dreamforge.jobs.job import Lane

FARTHEST = 1000
"""Places that are told. A job farther back has none yet, so that a long line costs no more than a short one."""

# The order is that of _CLAIM in claims.py and of the index ix_jobs_claim_order.
PLACES = text(
    """
    SELECT id, place FROM (
        SELECT jobs.id, row_number() OVER (
            ORDER BY CASE jobs.priority WHEN 'high' THEN 0 WHEN 'normal' THEN 1 ELSE 2 END, jobs.created_at, jobs.id
        ) AS place
        FROM jobs JOIN steps ON steps.job_id = jobs.id
        WHERE steps.status = 'queued' AND steps.lane = :lane
          AND (steps.next_attempt_at IS NULL
               OR NOT steps.next_attempt_at BETWEEN now() AND now() + interval '10 minutes')
          AND jobs.status IN ('queued', 'running') AND jobs.cancel_requested_at IS NULL
        ORDER BY CASE jobs.priority WHEN 'high' THEN 0 WHEN 'normal' THEN 1 ELSE 2 END, jobs.created_at, jobs.id
        LIMIT :farthest
    ) AS line
    WHERE id = ANY(:job_ids)
    """
)


async def queue_positions(session: AsyncSession, job_ids: Collection[uuid.UUID], *, lane: Lane) -> dict[uuid.UUID, int]:
    """The places, from 1, of those of the jobs that wait in this lane now and are among its first ``FARTHEST``."""
    if not job_ids:
        return {}
    values = {"lane": lane, "farthest": FARTHEST, "job_ids": list(job_ids)}
    return {row.id: row.place for row in await session.execute(PLACES, values)}
