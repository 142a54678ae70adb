"""Holding an answer until a job is over."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Generator

from dreamforge.errors import DatabaseUnavailable
from dreamforge.store.jobs import JobStore

log = logging.getLogger(__name__)

LEAST_PAUSE, MOST_PAUSE, GROWTH = 0.1, 1.0, 1.5
"""Seconds between two looks at a job: a short one is told soon, a long one costs a look a second."""


class JobEnds:
    """Waits for the ends of jobs by looking at them. Between two looks no connection is held."""

    def __init__(self, *, jobs: JobStore) -> None:
        self._jobs = jobs
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._is_leaving = False

    def leave(self) -> None:
        """Wait no more, now and from now on: the replica leaves. May be called from any thread."""
        self._is_leaving = True
        for loop, woken in list(self._waiting):
            # A loop that is closed has nobody who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(woken.set)

    async def wait(self, job_id: uuid.UUID, *, seconds: float, has_left: Callable[[], Awaitable[bool]]) -> None:
        """Return when the job is over, ``seconds`` have passed, the client ``has_left`` or the replica leaves.

        A database that is away meanwhile is passed over: the job was accepted.
        """
        deadline = time.monotonic() + seconds
        pause = LEAST_PAUSE
        with self._told_of_leaving() as woken:
            while (left := deadline - time.monotonic()) > 0 and not self._is_leaving:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(pause, left)):
                        await woken.wait()
                pause = min(pause * GROWTH, MOST_PAUSE)
                if self._is_leaving or await has_left() or await self._is_over(job_id):
                    return

    @contextlib.contextmanager
    def _told_of_leaving(self) -> Generator[asyncio.Event]:
        # Listening comes before looking: whoever leaves meanwhile tells this one, or is seen.
        entry = (asyncio.get_running_loop(), asyncio.Event())
        self._waiting.add(entry)
        try:
            yield entry[1]
        finally:
            self._waiting.discard(entry)

    async def _is_over(self, job_id: uuid.UUID) -> bool:
        try:
            return await self._jobs.is_over(job_id)
        except DatabaseUnavailable:
            log.warning("waiting for a job while the database is away", extra={"job_id": str(job_id)})
            return False
