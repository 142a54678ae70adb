"""Alembic's entry: one connection, one transaction, one migrator at a time."""

from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from dreamforge import settings
from dreamforge.store import migrate
from dreamforge.store.engine import CONNECT_TIMEOUT, driver_url
from dreamforge.store.tables import Table

_MIGRATION_LOCK = 0x64726D66
"""Advisory lock of whoever migrates."""
_CONNECT_ARGS = {
    "connect_timeout": 5 * CONNECT_TIMEOUT,
    "options": f"-c lock_timeout={migrate.TURN_TIMEOUT}s -c statement_timeout=0 -c timezone=UTC",
}


def run() -> None:
    """Run the chosen migrations."""
    engine = create_engine(_url(), poolclass=NullPool, connect_args=_CONNECT_ARGS)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        connection.execute(text(f"SET LOCAL lock_timeout = '{migrate.LOCK_TIMEOUT}s'"))
        context.configure(connection=connection, target_metadata=Table.metadata, compare_type=True)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


def _url() -> str:
    url = context.config.get_alembic_option("sqlalchemy.url")
    if url:
        return url
    # `alembic …` typed by a developer.
    given = settings.load().database_url
    if given is None:
        raise SystemExit("DREAMFORGE_DATABASE_URL is not set")
    return driver_url(given.get_secret_value())


run()
