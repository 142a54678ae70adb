"""What a deployed service expects to find: the schema, the bucket, and a model."""

from collections.abc import Generator
from contextlib import contextmanager

import psycopg

from dreamforge.blobs import Blobs, BlobSettings
from dreamforge.embedded import builtin
from dreamforge.embedded.report import Report
from dreamforge.embedded.trouble import StackError
from dreamforge.errors import DatabaseUnavailable
from dreamforge.settings import Settings
from dreamforge.store import migrate
from dreamforge.store.engine import CONNECT_TIMEOUT, libpq_url

_PREPARATION_LOCK = 0x0D4EA3F0
_LOCK_SECONDS = 300


def prepare_service(
    settings: Settings, *, database_url: str, blobs: BlobSettings, report: Report, with_model: bool = True
) -> str | None:
    """Make what is missing; harmless when nothing is. The notice of the built-in model, when that is what jobs find."""
    with report.part("Schema", "migrating"):
        migrate.upgrade(database_url)
    with report.part("Bucket", "looking"):
        Blobs(blobs).ensure_bucket()
    if not with_model:
        return None
    with report.part("Model", "looking; the built-in one is made the first time"), _one_at_a_time(database_url):
        return builtin.install_if_empty(settings, database_url)


@contextmanager
def _one_at_a_time(database_url: str) -> Generator[None]:
    # The nodes of a cluster prepare themselves together, and would all register the same model.
    try:
        with psycopg.connect(libpq_url(database_url), autocommit=True, connect_timeout=CONNECT_TIMEOUT) as connection:
            # Making the model takes seconds; whoever holds the lock for longer hangs.
            connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{_LOCK_SECONDS}s",))
            connection.execute("SELECT pg_advisory_lock(%s)", (_PREPARATION_LOCK,))
            yield
    except psycopg.errors.LockNotAvailable as error:
        raise StackError("Another `dreamforge` prepares this database, and does not come to an end.") from error
    except psycopg.Error as error:
        raise DatabaseUnavailable(f"The database does not let us in: {str(error).partition(chr(10))[0]}") from error
