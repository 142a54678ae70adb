"""Engines, with the time limits that the drivers' defaults lack, and the one border for database errors."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from psycopg.errors import ReadOnlySqlTransaction, UndefinedColumn, UndefinedTable
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from dreamforge.errors import DatabaseUnavailable
from dreamforge.store.connections import DEADLINE, ImpatientConnection, PatientConnection

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 2
"""Seconds to reach the server."""
STATEMENT_TIMEOUT_MS = 10_000
API_STATEMENT_TIMEOUT_MS = 2_000
"""Of a statement that a client waits for: a little more than ``USE_SECONDS``, which is told more clearly."""
CLIENT_CHECK_MS = 500
"""How often the server looks whether anybody still waits for the statement that it is busy with."""
POOL_TIMEOUT = 2.0
"""Seconds to wait for a free connection."""
USE_SECONDS = 1.8
"""Seconds that the database may take on the way to a client's answer, from the wait for a connection on."""

_OTHER_SCHEMA = "The database has not the schema of this version; `dreamforge prepare` migrates it."


def _connect_args(application: str, *, statement_timeout_ms: int = STATEMENT_TIMEOUT_MS) -> dict[str, object]:
    return {
        "connect_timeout": CONNECT_TIMEOUT,
        "application_name": application,
        "options": f"-c statement_timeout={statement_timeout_ms} -c timezone=UTC",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        # Keep-alives do not count while something that was sent is not acknowledged.
        "tcp_user_timeout": 15_000,
    }


def driver_url(database_url: str) -> str:
    """The URL with SQLAlchemy's name for psycopg 3, whichever Postgres scheme it came with."""
    return make_url(database_url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def libpq_url(database_url: str) -> str:
    """The URL as psycopg itself takes it, whichever Postgres scheme it came with."""
    # Not taken apart: SQLAlchemy writes a password's spaces in a way that libpq refuses.
    return f"postgresql://{database_url.partition('://')[2]}"


def open_engine(database_url: str, *, application: str, pool_size: int = 5) -> Engine:
    """A pooled engine for threads: the dispatcher and the supervisors."""
    engine = create_engine(
        driver_url(database_url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT,
        pool_pre_ping=True,
        connect_args=_connect_args(application),
    )
    event.listen(engine, "do_connect", _connect_patiently)
    return engine


def _connect_patiently(_: object, __: object, arguments: tuple[Any, ...], options: dict[str, Any]) -> PatientConnection:
    return PatientConnection.connect(*arguments, **options)


def open_async_engine(database_url: str, *, application: str, pool_size: int = 10) -> AsyncEngine:
    """A pooled engine for an event loop: the API.

    What ``in_time`` gives up the server gives up too: its statements are short, see ``allow_statements``, and end once
    their client has gone.
    """
    arguments = _connect_args(application, statement_timeout_ms=API_STATEMENT_TIMEOUT_MS)
    arguments["options"] = f"{arguments['options']} -c client_connection_check_interval={CLIENT_CHECK_MS}"
    return create_async_engine(
        driver_url(database_url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT,
        pool_pre_ping=True,
        connect_args={**arguments, "async_creator_fn": ImpatientConnection.connect},
    )


@contextmanager
def database_errors() -> Generator[None]:
    """Turn "the database is away" into ``DatabaseUnavailable``; anything else is a bug and passes."""
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        if not tells_of_absence(error):
            raise
        original = error.orig if isinstance(error, DBAPIError) else None
        if isinstance(original, UndefinedTable | UndefinedColumn):
            log.error("the database has another schema: %s", str(original).partition("\n")[0])
            raise DatabaseUnavailable(_OTHER_SCHEMA) from error
        raise DatabaseUnavailable from error


def tells_of_absence(error: Exception) -> bool:
    """True for an error that says nothing of what was asked, but that the database, or its schema, is not there."""
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):
        return False
    # A server that has become a standby, or was told to write nothing, will change its mind or its address.
    passing = ReadOnlySqlTransaction | UndefinedTable | UndefinedColumn
    return error.connection_invalidated or isinstance(error.orig, passing)


@asynccontextmanager
async def in_time(seconds: float = USE_SECONDS) -> AsyncGenerator[None]:
    """A use of the database that a client waits for. Raises ``DatabaseUnavailable`` when it is away, or takes longer.

    What has not come by then is not waited for: the connection is thrown away with whatever it was doing. Uses inside
    of this one share its time: a request that comes to the database several times waits no longer for it than others.
    """
    ours, outer = time.monotonic() + seconds, DEADLINE.get()
    # What is inside may end sooner, but no later.
    deadline = DEADLINE.set(ours if outer is None else min(ours, outer))
    try:
        with database_errors():
            async with asyncio.timeout(seconds):
                yield
    except TimeoutError as error:
        raise DatabaseUnavailable from error
    finally:
        DEADLINE.reset(deadline)


async def allow_statements(connection: AsyncConnection, *, seconds: float) -> None:
    """Let each statement of this transaction take so long, on a connection of ``open_async_engine``."""
    milliseconds = str(round(seconds * 1000))
    await connection.execute(text("SELECT set_config('statement_timeout', :value, true)"), {"value": milliseconds})
