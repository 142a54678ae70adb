"""Real servers for the tests, each on a port and in a folder of its own."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import settings
from psycopg import sql

from dreamforge.embedded.object_store import ObjectStore
from dreamforge.embedded.ports import free_port
from dreamforge.embedded.postgres import Postgres
from dreamforge.embedded.valkey import Valkey
from dreamforge.store import migrate
from tests.running_stack import RunningStack

# A busy machine is no reason to fail.
settings.register_profile("dreamforge", deadline=None)
settings.load_profile("dreamforge")

_TEMPLATE = "template_dreamforge"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's servers keep their data."""
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def postgres(server_folder: Path) -> Iterator[Postgres]:
    """A PostgreSQL server with a migrated template database."""
    server = Postgres(
        data=server_folder / "postgres",
        port=free_port(),
        log=server_folder / "postgres.log",
        password_file=server_folder / "postgres_password",
    )
    server.start()
    try:
        server.wait_ready()
        _create(server, _TEMPLATE, "template1")
        migrate.upgrade(server.url(_TEMPLATE))
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def database_url(postgres: Postgres) -> str:
    """A migrated database of the module's own."""
    return create_database(postgres, template=_TEMPLATE)


@pytest.fixture
def empty_database_url(postgres: Postgres) -> str:
    """A database of the test's own with nothing in it."""
    return create_database(postgres, template="template0")


@pytest.fixture(scope="session")
def redis_url(server_folder: Path) -> Iterator[str]:
    """A Valkey server."""
    server = Valkey(
        data=server_folder / "valkey",
        port=free_port(),
        log=server_folder / "valkey.log",
        password_file=server_folder / "valkey_password",
    )
    server.start()
    try:
        server.wait_ready()
        yield server.url()
    finally:
        server.stop()


@pytest.fixture(scope="session")
def object_store(server_folder: Path) -> Iterator[ObjectStore]:
    """An S3 server with the bucket in it."""
    server = ObjectStore(
        data=server_folder / "s3",
        port=free_port(),
        log=server_folder / "s3.log",
        secret_key_file=server_folder / "s3_secret_key",
    )
    server.start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The whole service as `dreamforge up` starts it, ready."""
    stack = RunningStack(data_dir=tmp_path_factory.mktemp("stack"))
    stack.start()
    try:
        stack.wait_until_ready()
        yield stack
    finally:
        stack.kill()


def create_database(server: Postgres, *, template: str) -> str:
    """The URL of a new database: `template0` gives an empty one, `template_dreamforge` a migrated one."""
    return _create(server, f"test_{next(_numbers)}", template)


def _create(server: Postgres, name: str, template: str) -> str:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
    return server.url(name)
