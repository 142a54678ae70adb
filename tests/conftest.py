"""Real servers for the tests, each on a port and in a folder of its own."""

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
from hypothesis import settings
from psycopg import sql

from dreamforge.blobs import BlobSettings
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.embedded.ports import free_port
from dreamforge.embedded.postgres import Postgres
from dreamforge.embedded.valkey import Valkey
from dreamforge.store import migrate
from tests.nvml.fake_nvml import Card, FakeMachine, build, loaded
from tests.servers import postgres as postgres_of_debian
from tests.servers import redis as redis_of_debian
from tests.servers import swift as swift_of_openstack
from tests.servers.postgres import DebianPostgres
from tests.servers.redis import DebianRedis
from tests.servers.swift import Swift

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every program they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# As in a runner: what is drawn in the tests' own process must not spin beside its servers. Before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A busy machine is no reason to fail.
settings.register_profile("dreamforge", deadline=None)
settings.load_profile("dreamforge")

_TEMPLATE = "template_dreamforge"
_EMBEDDED = "embedded"
# Under the mark `every_server` a test runs once over each of these, by the fixture that leads to it.
_SERVERS = {
    "postgres": {_EMBEDDED: "embedded_postgres", "debian": "debian_postgres"},
    "redis_url": {_EMBEDDED: "embedded_redis", "debian": "debian_redis"},
    "blob_settings": {_EMBEDDED: "object_store", "swift": "swift"},
}
_numbers = itertools.count(1)


class Database(Protocol):
    """A PostgreSQL server, whoever made it."""

    def url(self, database: str) -> str:
        """`postgresql://…` of one of its databases."""
        ...


class Redis(Protocol):
    """A Redis or Valkey server."""

    def url(self) -> str:
        """`redis://…` of one of its databases."""
        ...


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat what is marked `every_server` over the servers of others."""
    if metafunc.definition.get_closest_marker("every_server"):
        for fixture, servers in _SERVERS.items():
            if fixture in metafunc.fixturenames:
                metafunc.parametrize(fixture, list(servers), indirect=True, scope="session")


@pytest.fixture(scope="session")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's servers keep their data."""
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Database:
    """A PostgreSQL server with a migrated template database."""
    return _chosen(request, "postgres")


@pytest.fixture(scope="session")
def embedded_postgres(server_folder: Path) -> Iterator[Postgres]:
    """The PostgreSQL that comes with Dream Forge."""
    server = Postgres(
        data=server_folder / "postgres",
        port=free_port(),
        log=server_folder / "postgres.log",
        password_file=server_folder / "postgres_password",
    )
    server.start()
    try:
        server.wait_ready()
        _make_template(server)
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def debian_postgres(server_folder: Path) -> Iterator[DebianPostgres]:
    """Debian's PostgreSQL."""
    postgres_of_debian.require()
    server = DebianPostgres(port=free_port(), log=server_folder / "debian-postgres.log")
    try:
        server.start()
        _make_template(server)
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def database_url(postgres: Database) -> str:
    """A migrated database of the module's own."""
    return create_database(postgres, template=_TEMPLATE)


@pytest.fixture
def empty_database_url(postgres: Database) -> str:
    """A database of the test's own with nothing in it."""
    return create_database(postgres, template="template0")


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> str:
    """A Redis or Valkey server."""
    server: Redis = _chosen(request, "redis_url")
    return server.url()


@pytest.fixture(scope="session")
def embedded_redis(server_folder: Path) -> Iterator[Valkey]:
    """The Valkey that comes with Dream Forge."""
    server = Valkey(
        data=server_folder / "valkey",
        port=free_port(),
        log=server_folder / "valkey.log",
        password_file=server_folder / "valkey_password",
    )
    server.start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def debian_redis(server_folder: Path) -> Iterator[DebianRedis]:
    """Debian's Redis."""
    redis_of_debian.require()
    server = DebianRedis(port=free_port(), log=server_folder / "debian-redis.log")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def blob_settings(request: pytest.FixtureRequest) -> BlobSettings:
    """An S3 server."""
    server: ObjectStore | Swift = _chosen(request, "blob_settings")
    return server.settings()


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
def swift(server_folder: Path) -> Iterator[Swift]:
    """OpenStack Swift's S3 door."""
    swift_of_openstack.require(server_folder)
    folder = server_folder / "swift"
    folder.mkdir()
    server = Swift(folder=folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def create_database(server: Database, *, template: str) -> str:
    """The URL of a new database: `template0` gives an empty one, `template_dreamforge` a migrated one."""
    return _create(server, f"test_{next(_numbers)}", template)


def _chosen(request: pytest.FixtureRequest, fixture: str) -> Any:
    return request.getfixturevalue(_SERVERS[fixture][getattr(request, "param", _EMBEDDED)])


def _make_template(server: Database) -> None:
    _create(server, _TEMPLATE, "template1")
    migrate.upgrade(server.url(_TEMPLATE))


def _connected(server: Database) -> psycopg.Connection:
    try:
        return psycopg.connect(server.url("postgres"), autocommit=True)
    except psycopg.OperationalError:
        if not isinstance(server, Postgres):
            raise
        # One that has died takes its module along, and no other.
        server.stop()
        server.start()
        server.wait_ready()
        return psycopg.connect(server.url("postgres"), autocommit=True)


def _create(server: Database, name: str, template: str) -> str:
    with _connected(server) as connection:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
    return server.url(name)


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NVML's stand-in, compiled."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(nvml_library: Path, tmp_path: Path) -> Iterator[FakeMachine]:
    """This process' NVML: a machine with two cards."""
    machine = FakeMachine(tmp_path / "nvml.state")
    machine.devices = [Card("GPU-11111111"), Card("GPU-22222222")]
    machine.write()
    with loaded(nvml_library, machine):
        yield machine
