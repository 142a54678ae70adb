"""Connections that do not wait for ever for a server that has fallen silent.

A stopped server or a cut cable is no error to the driver: its timeouts end connecting, and the server's own
`statement_timeout` ends statements, but nothing ends the wait for an answer.
"""

import asyncio
import time
import traceback
from contextvars import ContextVar
from typing import Any, Self, TypeVar

import psycopg
from psycopg import waiting
from psycopg.abc import PQGen

_Result = TypeVar("_Result")
_INTERVAL = 0.1

DEADLINE: ContextVar[float | None] = ContextVar("deadline", default=None)
"""By when, in seconds of the monotonic clock, what is asked now must be answered.

SQLAlchemy commits, rolls back and closes in tasks of their own, which no cancel reaches, but which inherit this.
"""
_LEAST_SECONDS = 0.05
"""For the rollback of what has come to its deadline: a server that is there answers within."""
SILENCE_SECONDS = 15.0
"""Longer than any statement may take: from here on the server is not busy but silent."""


class PatientConnection(psycopg.Connection):
    """For threads: an answer is waited for ``SILENCE_SECONDS``, then the connection is thrown away."""

    def wait(self, gen: PQGen[_Result], interval: float = _INTERVAL, timeout: float | None = None) -> _Result:
        """As psycopg's own. Raises ``OperationalError`` when the server stays silent."""
        try:
            return waiting.wait(gen, self.pgconn.socket, interval=interval, timeout=timeout or SILENCE_SECONDS)
        except BaseException:
            if self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                # Nobody has read the answer, which may come yet: the connection is of no more use.
                self.pgconn.finish()
            raise


class ImpatientConnection(psycopg.AsyncConnection):
    """For an event loop: a task that is cancelled, or too late, throws its connection away at once.

    psycopg would ask the server to cancel the statement, and wait for its answer: 10 s, when it is silent.
    """

    @classmethod
    async def connect(cls, *arguments: Any, **options: Any) -> Self:
        """As psycopg's own. Cancelled, it goes on behind the caller's back until its own time limit, and closes."""
        connecting = asyncio.create_task(cls._connect(*arguments, **options))
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(_close_late)
            raise

    @classmethod
    async def _connect(cls, *arguments: Any, **options: Any) -> Self:
        try:
            return await super().connect(*arguments, **options)
        except (psycopg.Error, asyncio.CancelledError) as error:
            # The frames hold the error and the socket, and the error holds the frames: until the garbage is collected.
            traceback.clear_frames(error.__traceback__)
            raise

    async def wait(self, gen: PQGen[_Result], interval: float = _INTERVAL, timeout: float | None = None) -> _Result:
        """As psycopg's own. Raises ``OperationalError`` when the answer has not come by ``DEADLINE``."""
        deadline = DEADLINE.get()
        if timeout is None and deadline is not None:
            timeout = max(deadline - time.monotonic(), _LEAST_SECONDS)
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, interval=interval, timeout=timeout)
        except asyncio.CancelledError:
            self.pgconn.finish()
            raise
        except BaseException:
            if self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                self.pgconn.finish()
            raise


def _close_late(connecting: asyncio.Task[ImpatientConnection]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().pgconn.finish()
