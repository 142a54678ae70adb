"""Each embedded server by itself: it keeps what it was given, and lets nobody in who has no key."""

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from dreamforge.blobs import Blobs, BlobSettings
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.embedded.ports import free_port
from dreamforge.embedded.postgres import Postgres
from dreamforge.embedded.process import ServerProcess
from dreamforge.embedded.trouble import StackError
from dreamforge.embedded.valkey import Valkey
from dreamforge.errors import StorageUnavailable
from tests.running_stack import lives, wait_for

Server = Postgres | Valkey | ObjectStore
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Kind:
    """How to make a server over a folder, write to it, and read that back."""

    make: Callable[[Path, int], Server]
    write: Callable[[Server], None]
    read: Callable[[Server], object]


def _postgres(folder: Path, port: int) -> Postgres:
    return Postgres(
        data=folder / "data", port=port, log=folder / "logs" / "server.log", password_file=folder / "secrets" / "one"
    )


def _valkey(folder: Path, port: int) -> Valkey:
    return Valkey(
        data=folder / "data", port=port, log=folder / "logs" / "server.log", password_file=folder / "secrets" / "one"
    )


def _object_store(folder: Path, port: int) -> ObjectStore:
    return ObjectStore(
        data=folder / "data", port=port, log=folder / "logs" / "server.log", secret_key_file=folder / "secrets" / "one"
    )


def _write_row(server: Server) -> None:
    assert isinstance(server, Postgres)
    with psycopg.connect(server.url()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 'kept' AS value")


def _read_row(server: Server) -> object:
    assert isinstance(server, Postgres)
    with psycopg.connect(server.url()) as connection:
        row = connection.execute("SELECT value FROM kept").fetchone()
    return row and row[0]


def _write_key(server: Server) -> None:
    assert isinstance(server, Valkey)
    with Redis.from_url(server.url()) as redis:
        redis.set("key", "kept")
        # The file is written once a second: this returns when it was.
        redis.execute_command("WAITAOF", 1, 0, 5000)


def _read_key(server: Server) -> object:
    assert isinstance(server, Valkey)
    with Redis.from_url(server.url(), decode_responses=True) as redis:
        return redis.get("key")


def _write_object(server: Server) -> None:
    assert isinstance(server, ObjectStore)
    server.blobs().put("folder/key", b"kept", content_type="text/plain")


def _read_object(server: Server) -> object:
    assert isinstance(server, ObjectStore)
    url = server.blobs().presign("folder/key", ttl=60, content_type="text/plain", filename="kept.txt")
    with urllib.request.urlopen(url) as response:
        return response.read().decode()


KINDS = {
    "postgres": Kind(_postgres, _write_row, _read_row),
    "valkey": Kind(_valkey, _write_key, _read_key),
    "object_store": Kind(_object_store, _write_object, _read_object),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[Kind], Server]]:
    servers: list[Server] = []

    def start(kind: Kind) -> Server:
        server = kind.make(tmp_path, free_port())
        server.start()
        servers.append(server)
        server.wait_ready()
        return server

    yield start
    for server in servers:
        server.stop()


def _of_its_family(server: Server, asked: Callable[[psutil.Process], list[Answer]]) -> list[list[Answer]]:
    """What the server's processes answer. Some live for a moment only: PostgreSQL's workers."""
    process = psutil.Process(_process(server).pid)
    answers = [asked(process)]
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            answers.append(asked(child))
    return answers


def _process(server: Server) -> ServerProcess:
    assert server.process is not None
    return server.process


def test_what_it_was_given_outlives_a_stop_and_no_process_does(kind: Kind, started: Callable[[Kind], Server]) -> None:
    first = started(kind)
    kind.write(first)
    process = psutil.Process(_process(first).pid)
    family = [process, *process.children(recursive=True)]
    first.stop()
    assert not [member for member in family if member.is_running()]
    # On another port: nothing of the old one is kept.
    assert kind.read(started(kind)) == "kept"


def test_what_it_was_given_outlives_a_kill(kind: Kind, started: Callable[[Kind], Server]) -> None:
    first = started(kind)
    kind.write(first)
    pid = _process(first).pid
    descendants = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: _process(first).exit_code is not None, seconds=10, what="its end")
    wait_for(lambda: not any(lives(member) for member in descendants), seconds=10, what="its workers' end")
    assert kind.read(started(kind)) == "kept"


def test_a_taken_port_ends_the_start_with_the_server_s_own_words(kind: Kind, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = kind.make(tmp_path, taken.getsockname()[1])
        server.start()
        try:
            with pytest.raises(StackError, match=r"(?s)ended at its start.*server\.log"):
                server.wait_ready()
        finally:
            server.stop()


def test_it_listens_on_loopback_only(kind: Kind, started: Callable[[Kind], Server]) -> None:
    connections = _of_its_family(started(kind), psutil.Process.net_connections)
    listening = [
        connection.laddr.ip for ones in connections for connection in ones if connection.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {"127.0.0.1"}


def test_its_secret_is_its_owner_s_and_in_no_argument(
    kind: Kind, started: Callable[[Kind], Server], tmp_path: Path
) -> None:
    server = started(kind)
    secret = tmp_path / "secrets" / "one"
    assert secret.stat().st_mode & 0o077 == 0
    assert len(secret.read_text()) >= 32
    arguments = [argument for ones in _of_its_family(server, psutil.Process.cmdline) for argument in ones]
    assert not [argument for argument in arguments if secret.read_text() in argument]


def test_postgres_refuses_a_wrong_password_and_none(started: Callable[[Kind], Server]) -> None:
    server = started(KINDS["postgres"])
    assert isinstance(server, Postgres)
    parts = urlsplit(server.url())
    for credentials in ("dreamforge:wrong@", "dreamforge@", "postgres@"):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(f"postgresql://{credentials}{parts.hostname}:{parts.port}/postgres")


def test_postgres_with_another_password_says_which_folder_it_is(
    started: Callable[[Kind], Server], tmp_path: Path
) -> None:
    started(KINDS["postgres"]).stop()
    (tmp_path / "secrets" / "one").write_text("not what the folder was made with")
    with pytest.raises(StackError, match="refuses the password"):
        started(KINDS["postgres"])


def test_postgres_starts_after_a_kill_while_its_folder_was_being_made(
    started: Callable[[Kind], Server], tmp_path: Path
) -> None:
    half_made = tmp_path / "data.unfinished"
    half_made.mkdir()
    (half_made / "PG_VERSION").write_text("18\n")
    server = started(KINDS["postgres"])
    _write_row(server)
    assert _read_row(server)
    assert not half_made.exists()


@pytest.mark.parametrize(("version", "words"), [("15", "made by PostgreSQL 15"), (None, "no folder of PostgreSQL's")])
def test_postgres_refuses_a_folder_that_is_not_of_its_version(tmp_path: Path, version: str | None, words: str) -> None:
    (tmp_path / "data").mkdir()
    if version:
        (tmp_path / "data" / "PG_VERSION").write_text(f"{version}\n")
    with pytest.raises(StackError, match=words):
        _postgres(tmp_path, free_port()).start()


def test_valkey_refuses_a_wrong_password_and_none(started: Callable[[Kind], Server]) -> None:
    server = started(KINDS["valkey"])
    assert isinstance(server, Valkey)
    port = urlsplit(server.url()).port
    for credentials in (":wrong@", ""):
        with Redis.from_url(f"redis://{credentials}127.0.0.1:{port}") as redis, pytest.raises(AuthenticationError):
            redis.ping()


def test_valkey_throws_nothing_away_and_writes_everything_down(started: Callable[[Kind], Server]) -> None:
    server = started(KINDS["valkey"])
    assert isinstance(server, Valkey)
    with Redis.from_url(server.url(), decode_responses=True) as redis:
        assert redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert redis.config_get("appendonly") == {"appendonly": "yes"}


def test_valkey_comes_up_with_a_half_written_file(started: Callable[[Kind], Server], tmp_path: Path) -> None:
    kind = KINDS["valkey"]
    first = started(kind)
    kind.write(first)
    first.stop()
    (written,) = (tmp_path / "data" / "appendonlydir").glob("*.incr.aof")
    with written.open("ab") as stream:
        stream.write(b"*3\r\n$3\r\nSET\r\n$3\r\nke")
    assert kind.read(started(kind)) == "kept"


def test_the_object_store_refuses_who_does_not_sign_or_signs_wrongly(started: Callable[[Kind], Server]) -> None:
    kind = KINDS["object_store"]
    server = started(kind)
    assert isinstance(server, ObjectStore)
    kind.write(server)
    for path in ("", "/dreamforge", "/dreamforge/folder/key"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.endpoint}{path}")
        assert refused.value.code in {400, 403}
        refused.value.close()
    stranger = Blobs(
        BlobSettings(
            endpoint=server.endpoint,
            public_endpoint=server.endpoint,
            access_key=server.access_key,
            secret_key="guessed",
            bucket="dreamforge",
            region="us-east-1",
        )
    )
    with pytest.raises(StorageUnavailable):
        stranger.ensure_bucket()
    with pytest.raises(StorageUnavailable):
        stranger.put("folder/key", b"forged", content_type="text/plain")
    assert kind.read(server) == "kept"


@pytest.fixture
def postgres_folder(tmp_path: Path) -> Path:
    """Where a PostgreSQL has been, and has stopped."""
    server = _postgres(tmp_path, free_port())
    server.start()
    try:
        server.wait_ready()
    finally:
        server.stop()
    return tmp_path


def test_a_pid_file_whose_number_somebody_else_has_now_does_not_hold_postgresql_up(postgres_folder: Path) -> None:
    data = postgres_folder / "data"
    owner = (data / "PG_VERSION").stat().st_uid
    server = _postgres(postgres_folder, free_port())
    with subprocess.Popen(["sleep", "600"], user=owner) as other:
        (data / "postmaster.pid").write_text(f"{other.pid}\n{data}\n1\n5432\n\n127.0.0.1\n\nready\n")
        try:
            server.start()
            assert server.wait_ready()
        finally:
            server.stop()
            other.kill()


def test_a_killed_postgresql_that_nobody_has_collected_does_not_hold_the_next_one_up(tmp_path: Path) -> None:
    killed, server = (_postgres(tmp_path, free_port()) for _ in range(2))
    killed.start()
    try:
        killed.wait_ready()
        assert killed.process is not None
        process = psutil.Process(killed.process.pid)
        family = [process, *process.children(recursive=True)]
        for member in family:
            member.kill()
        wait_for(lambda: not any(lives(member) for member in family), what="their death")
        assert process.status() == psutil.STATUS_ZOMBIE
        server.start()
        assert server.wait_ready()
    finally:
        server.stop()
        killed.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_folder_of_another_user_is_named_and_left_alone(postgres_folder: Path) -> None:
    data = postgres_folder / "data"
    nobody = pwd.getpwnam("nobody")
    for path in (data, *data.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    with pytest.raises(StackError, match="belongs to the user nobody: run as that user"):
        _postgres(postgres_folder, free_port()).start()
    assert {path.stat().st_uid for path in (data, *data.rglob("*"))} == {nobody.pw_uid}


def test_the_object_store_answers_for_a_large_object_without_reading_it(tmp_path: Path) -> None:
    """A model has 7 GB, and whoever asks how large it is waits for seconds."""
    store = _object_store(tmp_path, free_port())
    store.start()
    try:
        store.wait_ready()
        # 100 GB, all of them a hole.
        path = tmp_path / "data" / store.settings().bucket / "models" / "large"
        path.parent.mkdir()
        with path.open("wb") as large:
            large.truncate(10**11)
        blobs = store.blobs(read_timeout=5.0)
        assert blobs.size_of("models/large") == 10**11
        assert [found.size_bytes for found in blobs.list("models/")] == [10**11]
        with contextlib.closing(blobs.open("models/large")) as blob:
            assert blob.read(10) == bytes(10)
    finally:
        store.stop()


def test_the_object_store_keeps_nothing_of_a_model_that_was_half_sent_when_it_was_killed(tmp_path: Path) -> None:
    store = _object_store(tmp_path, free_port())
    store.start()
    store.wait_ready()

    class Half:
        sent = 0

        def read(self, most: int = -1) -> bytes:
            self.sent += most
            if self.sent > 2 * 16 * 1024**2:
                assert store.process is not None
                os.kill(store.process.pid, signal.SIGKILL)
            return bytes(most)

    def files() -> set[str]:
        return {path.name for path in (tmp_path / "data").rglob("*") if path.is_file()}

    try:
        blobs = store.blobs()
        blobs.put("models/sha256/whole", b"whole", content_type="text/plain")
        with pytest.raises(StorageUnavailable):
            blobs.put_file("models/sha256/half", Half(), size=10**9)
        assert len(files()) == 2
        store.stop()
        store.start()
        store.wait_ready()
        assert files() == {"whole"}
    finally:
        store.stop()
