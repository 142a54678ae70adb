"""A PostgreSQL of a benchmark's own."""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from dreamforge.embedded.ports import free_port
from dreamforge.embedded.postgres import Postgres
from dreamforge.store import migrate


@contextmanager
def migrated_database() -> Generator[str]:
    """The URL of a fresh, migrated database in a server that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="df-benchmark-") as name:
        folder = Path(name)
        # As root, the server runs as a system user.
        folder.chmod(0o755)
        server = Postgres(
            data=folder / "postgres", port=free_port(), log=folder / "log", password_file=folder / "password"
        )
        server.start()
        try:
            server.wait_ready()
            migrate.upgrade(server.url("postgres"))
            yield server.url("postgres")
        finally:
            server.stop()
