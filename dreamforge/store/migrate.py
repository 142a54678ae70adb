"""Bring the database's schema up to this version of the code, or down again."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from psycopg.errors import LockNotAvailable
from sqlalchemy.exc import OperationalError

from dreamforge.errors import DatabaseUnavailable, SchemaUnknown
from dreamforge.store.engine import database_errors, driver_url

LOCK_TIMEOUT = 10
"""Seconds that a migration waits for a table that others use."""
TURN_TIMEOUT = 60
"""Seconds that one migrator waits for another."""

_PACKAGE = Path(__file__).resolve().parent.parent


def migrations_folder() -> Path:
    """Where the migrations lie: beside the package in a checkout, inside it when installed from a wheel."""
    bundled = _PACKAGE / "_bundled" / "migrations"
    return bundled if bundled.is_dir() else _PACKAGE.parent / "migrations"


def alembic_config(database_url: str) -> Config:
    """Alembic's configuration for this database."""
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()))
    config.set_main_option("sqlalchemy.url", driver_url(database_url).replace("%", "%%"))
    return config


def upgrade(database_url: str, revision: str = "head") -> None:
    """Migrate up. Safe to run by several processes at once: they take turns on an advisory lock.

    Raises ``SchemaUnknown`` for a database that a newer version has migrated, ``DatabaseUnavailable`` for one that is
    away or in which another session holds a lock for ``LOCK_TIMEOUT`` seconds.
    """
    with database_errors():
        try:
            command.upgrade(alembic_config(database_url), revision)
        except CommandError as error:
            raise SchemaUnknown(f"{SchemaUnknown.__doc__} ({error})") from error
        except OperationalError as error:
            if isinstance(error.orig, LockNotAvailable):
                raise DatabaseUnavailable("The database cannot be migrated: another session holds its lock.") from error
            raise


def downgrade(database_url: str, revision: str) -> None:
    """Migrate down to ``revision`` (`base`: drop everything)."""
    command.downgrade(alembic_config(database_url), revision)
