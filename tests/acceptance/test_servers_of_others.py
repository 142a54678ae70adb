"""The whole service over a PostgreSQL, a Redis and an S3 server that others have made and packaged."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from dreamforge.embedded.ports import free_port
from dreamforge.store import migrate
from dreamforge.store.inspection import known_schemas
from tests.refusal import store_variables
from tests.running_stack import RunningStack, wait_for
from tests.servers import postgres, redis, swift
from tests.servers.postgres import DebianPostgres
from tests.servers.redis import DebianRedis
from tests.servers.swift import ACCESS_KEY, SECRET_KEY, Swift
from tests.web import web

pytestmark = pytest.mark.timeout(500)


@dataclass(frozen=True)
class Others:
    """Servers that the test may end."""

    postgres: DebianPostgres
    redis: DebianRedis
    swift: Swift


@pytest.fixture
def others(tmp_path: Path) -> Iterator[Others]:
    postgres.require()
    redis.require()
    swift.require(tmp_path)
    (tmp_path / "swift").mkdir()
    servers = Others(
        postgres=DebianPostgres(port=free_port(), log=tmp_path / "postgres.log"),
        redis=DebianRedis(port=free_port(), log=tmp_path / "redis.log"),
        swift=Swift(folder=tmp_path / "swift"),
    )
    with ExitStack() as ending:
        for server in (servers.postgres, servers.redis, servers.swift):
            ending.callback(server.stop)
            server.start()
        yield servers


@pytest.fixture
def stack(others: Others, tmp_path: Path) -> Iterator[RunningStack]:
    stack = RunningStack(
        data_dir=tmp_path / "data",
        DREAMFORGE_DATABASE_URL=others.postgres.url(),
        DREAMFORGE_REDIS_URL=others.redis.url(),
        DREAMFORGE_REDIS_OUTAGE="reject",
        **store_variables(others.swift.endpoint, access_key=ACCESS_KEY, secret_key=SECRET_KEY),
    )
    stack.data_dir.mkdir()
    yield stack
    if hasattr(stack, "process"):
        stack.kill()


def _images(stack: RunningStack, job: dict[str, Any]) -> list[bytes]:
    return [web.get(artifact["url"]).raise_for_status().content for artifact in stack.artifacts(job)]


def _status(stack: RunningStack) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dreamforge.cli.main", "status"],
        env={**os.environ, "DREAMFORGE_DATA_DIR": str(stack.data_dir)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _checks(stack: RunningStack) -> set[str]:
    """What is away."""
    return {name for name, check in stack.get("/readyz").json()["checks"].items() if not check["ok"]}


def test_images_are_drawn_and_kept_over_servers_of_others(stack: RunningStack, others: Others) -> None:
    # An old schema, which `up` migrates.
    migrate.upgrade(others.postgres.url())
    migrate.downgrade(others.postgres.url(), "base")

    stack.start()
    stack.wait_until_ready()
    assert set(stack.state()["parts"]) == {"ray"}
    job = stack.run(count=2, params={"prompt": "kept", "seed": 3})
    assert job["status"] == "succeeded"
    images = _images(stack, job)
    assert [image[:4] for image in images] == [b"\x89PNG"] * 2
    assert all(artifact["url"].startswith(f"{others.swift.endpoint}/") for artifact in stack.artifacts(job))
    stack.send(signal.SIGINT)
    assert stack.wait_for_end() == 0

    stack.start()
    stack.wait_until_ready()
    kept = stack.get(job["links"]["self"]).json()
    assert kept["status"] == "succeeded"
    assert _images(stack, kept) == images
    assert stack.run(params={"prompt": "again"})["status"] == "succeeded"
    with psycopg.connect(others.postgres.url()) as connection:
        assert connection.execute("SELECT count(*) FROM jobs WHERE status = 'succeeded'").fetchone() == (2,)
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (known_schemas().newest,)

    _assert_absences_are_told(stack, others, job)
    family = stack.family()
    stack.send(signal.SIGINT)
    assert stack.wait_for_end(seconds=40) == 0
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert "Traceback" not in stack.said()


def _assert_absences_are_told(stack: RunningStack, others: Others, job: dict[str, Any]) -> None:
    """End one server after the other: the API and `dreamforge status` say so, and no more than that."""
    (artifact, _) = stack.artifacts(job)
    for name, end, ask, code in (
        (
            "s3",
            others.swift.stop,
            lambda: stack.get(f"/v1/artifacts/{artifact['id']}/content?redirect=false"),
            "storage_unavailable",
        ),
        ("redis", others.redis.stop, lambda: stack.post(params={"prompt": "nobody rings"}), "queue_unavailable"),
        ("postgres", others.postgres.halt, lambda: stack.get(job["links"]["self"]), "database_unavailable"),
    ):
        end()
        wait_for(lambda name=name: name in _checks(stack), seconds=20, what=f"word of {name}'s absence")
        told = _status(stack)
        assert told.returncode == 2, told.stdout
        assert f"✗ {name}: " in told.stdout
        assert "Traceback" not in told.stdout + told.stderr
        answer = ask()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, code)
        assert int(answer.headers["Retry-After"]) >= 1
        assert "Traceback" not in answer.text
