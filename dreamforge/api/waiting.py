"""Holding an answer until a job is over."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable

from dreamforge.errors import DatabaseUnavailable
from dreamforge.store.jobs import JobStore

log = logging.getLogger(__name__)

LEAST_PAUSE, MOST_PAUSE, GROWTH = 0.1, 1.0, 1.5
"""Seconds between two looks at a job: a short one is told soon, a long one costs a look a second."""


class JobEnds:
    """Waits for the ends of jobs by looking at them. Between two looks no connection is held."""

    def __init__(self, *, jobs: JobStore) -> None:
        self._jobs = jobs

    async def wait(self, job_id: uuid.UUID, *, seconds: float, has_left: Callable[[], Awaitable[bool]]) -> None:
        """Return when the job is over, when ``seconds`` have passed, or when the client ``has_left``.

        A database that is away meanwhile is passed over: the job was accepted.
        """
        deadline = time.monotonic() + seconds
        pause = LEAST_PAUSE
        while (left := deadline - time.monotonic()) > 0:
            await asyncio.sleep(min(pause, left))
            pause = min(pause * GROWTH, MOST_PAUSE)
            if await has_left() or await self._is_over(job_id):
                return

    async def _is_over(self, job_id: uuid.UUID) -> bool:
        try:
            return await self._jobs.is_over(job_id)
        except DatabaseUnavailable:
            log.warning("waiting for a job while the database is away", extra={"job_id": str(job_id)})
            return False
