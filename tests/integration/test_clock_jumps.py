"""A clock that is set forward or back while jobs run: the database's, by which leases run, and a node's."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from dreamforge.embedded.object_store import ObjectStore
from dreamforge.embedded.ports import free_port
from dreamforge.jobs.job import JobStatus
from dreamforge.settings import inherited_environment
from dreamforge.store import migrate
from tests.conftest import create_database
from tests.faults import faketime_library
from tests.figures import Tell
from tests.integration.dispatching import Dispatching
from tests.servers import postgres as postgres_of_debian
from tests.servers.postgres import DebianPostgres
from tests.service import wait_for

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("cluster")]

LEASE = 9.0
"""Seconds: longer than the step that runs meanwhile."""


class Clock:
    """The clock of a server, as far from the machine's as a file says."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set("+0")

    def set(self, offset: str) -> None:
        """As libfaketime takes it: `+1h`."""
        self._file.write_text(offset)
        self._file.chmod(0o644)

    def environment(self) -> dict[str, str]:
        """What a process is started with that goes by this clock; time that passes is the machine's."""
        return {
            **inherited_environment(),
            "LD_PRELOAD": str(faketime_library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "LC_ALL": "C",
        }


class ClockedPostgres:
    """A PostgreSQL with a clock that can be set."""

    def __init__(self, log: Path) -> None:
        self._server = DebianPostgres(port=free_port(), log=log)
        self.clock = Clock(self._server.folder / "clock")
        self._server.set_environment(self.clock.environment())

    def start(self) -> str:
        """A migrated database's URL."""
        self._server.start()
        url = create_database(self._server, template="template0")
        migrate.upgrade(url)
        return url

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture(scope="module")
def clocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ClockedPostgres, str]]:
    """The server, and its database."""
    faketime_library()
    postgres_of_debian.require()
    server = ClockedPostgres(tmp_path_factory.mktemp("clocked") / "postgres.log")
    try:
        yield server, server.start()
    finally:
        server.stop()


@pytest.fixture
def clock(clocked: tuple[ClockedPostgres, str]) -> Clock:
    """Its clock, set right."""
    clocked[0].clock.set("+0")
    return clocked[0].clock


@pytest.fixture
def database_url(clocked: tuple[ClockedPostgres, str], clock: Clock) -> str:
    """Its database."""
    assert clock
    return clocked[1]


def test_the_server_goes_by_its_clock(database_url: str, clock: Clock) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        query = "SELECT extract(epoch FROM clock_timestamp())"
        before = connection.execute(query).fetchone()
        clock.set("-1h")
        after = connection.execute(query).fetchone()
    assert before is not None
    assert after is not None
    assert -3700 < after[0] - before[0] < -3500


@pytest.mark.parametrize("jump", ["+2h", "-2h"])
def test_nobody_is_taken_for_lost_because_of_it(service: Dispatching, clock: Clock, jump: str, tell: Tell) -> None:
    service.start("take its time", lease=LEASE, renew=0.5)
    new = service.submit()
    wait_for(lambda: service.find(new).steps[0].started_at, what="the start")
    clock.set(jump)
    record = service.ended(new)
    assert (record.job.status, record.steps[0].attempt) == (JobStatus.SUCCEEDED, 1)
    assert not [event for event in service.jobs.events(new.id) if event.code == "step.rescued"]
    tell(f"The database's clock set {jump}", attempts=record.steps[0].attempt)


@pytest.mark.parametrize("jump", ["+2h", "-2h"])
def test_whoever_is_lost_is_noticed_all_the_same(service: Dispatching, clock: Clock, jump: str) -> None:
    new = service.submit()
    # Claimed by a dispatcher that is no more.
    with service.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE steps SET status = 'running', attempt = 1, lease_token = gen_random_uuid(),"
                " lease_expires_at = now() + interval '9 s'"
            )
        )
        connection.execute(text("UPDATE jobs SET status = 'running', started_at = now()"))
    clock.set(jump)
    service.start(lease=4.0, renew=0.5)
    record = service.ended(new)
    assert (record.job.status, record.steps[0].attempt) == (JobStatus.SUCCEEDED, 2)


def test_a_step_that_waits_for_its_retry_waits_no_hour_longer(service: Dispatching, clock: Clock) -> None:
    new = service.submit()
    with service.engine.begin() as connection:
        connection.execute(text("UPDATE steps SET next_attempt_at = now() + interval '60 s'"))
    clock.set("-2h")
    service.start()
    assert service.ended(new).job.status == JobStatus.SUCCEEDED


def test_a_node_whose_clock_is_wrong_is_told_so_by_the_object_store(object_store: ObjectStore, tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock")
    clock.set("+1h")
    script = """
import json, sys
from dreamforge.blobs import Blobs, BlobSettings
from dreamforge.errors import StorageUnavailable
try:
    Blobs(BlobSettings(**json.loads(sys.argv[1]))).put("clock.png", b"x", content_type="image/png")
except StorageUnavailable as error:
    print(error.message)
"""
    settings = json.dumps(vars(object_store.settings()))
    result = subprocess.run(
        [sys.executable, "-c", script, settings], env=clock.environment(), capture_output=True, text=True, check=True
    )
    assert result.stdout == "The object store answered RequestTimeTooSkewed.\n"
