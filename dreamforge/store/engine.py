"""Engines, with the time limits that the drivers' defaults lack, and the one border for database errors."""

from collections.abc import Generator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from dreamforge.errors import DatabaseUnavailable

CONNECT_TIMEOUT = 2
"""Seconds to reach the server."""
STATEMENT_TIMEOUT_MS = 10_000
POOL_TIMEOUT = 2.0
"""Seconds to wait for a free connection."""


def _connect_args(application: str) -> dict[str, object]:
    return {
        "connect_timeout": CONNECT_TIMEOUT,
        "application_name": application,
        "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c timezone=UTC",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }


def driver_url(database_url: str) -> str:
    """The URL with SQLAlchemy's name for psycopg 3, whichever Postgres scheme it came with."""
    return make_url(database_url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def open_engine(database_url: str, *, application: str, pool_size: int = 5) -> Engine:
    """A pooled engine for threads: the dispatcher and the supervisors."""
    return create_engine(
        driver_url(database_url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT,
        pool_pre_ping=True,
        connect_args=_connect_args(application),
    )


def open_async_engine(database_url: str, *, application: str, pool_size: int = 10) -> AsyncEngine:
    """A pooled engine for an event loop: the API."""
    return create_async_engine(
        driver_url(database_url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT,
        pool_pre_ping=True,
        connect_args=_connect_args(application),
    )


@contextmanager
def database_errors() -> Generator[None]:
    """Turn "the database is away" into ``DatabaseUnavailable``; anything else is a bug and passes."""
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise DatabaseUnavailable from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise DatabaseUnavailable from error
        raise
