"""Servers whose disk has no room left: told with a code, nothing torn, and over as soon as there is room again."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from dreamforge.embedded.object_store import ObjectStore
from dreamforge.embedded.ports import free_port
from dreamforge.store import migrate
from dreamforge.store.models import NewModel
from tests.conftest import create_database
from tests.faults import full_disk, small_disk
from tests.figures import Tell
from tests.integration.door import assert_envelope
from tests.integration.live_api import LiveApi, new_job
from tests.servers import postgres as postgres_of_debian
from tests.servers.postgres import DebianPostgres
from tests.service import wait_for

pytestmark = pytest.mark.timeout(180)

MIB = 140
"""What a PostgreSQL with a small log takes, and a little."""


@pytest.fixture(scope="module")
def cramped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A PostgreSQL whose data are on a small disk: that, and a database's URL."""
    postgres_of_debian.require()
    server = DebianPostgres(
        port=free_port(),
        log=tmp_path_factory.mktemp("cramped") / "postgres.log",
        more=("min_wal_size=32MB", "max_wal_size=32MB", "fsync=on"),
    )
    with small_disk(server.folder, mib=MIB) as disk:
        if os.geteuid() == 0:
            shutil.chown(disk, "postgres", "postgres")
        try:
            server.start()
            url = create_database(server, template="template0")
            migrate.upgrade(url)
            yield disk, url
        finally:
            server.halt()


@pytest.fixture
def database_url(cramped: tuple[Path, str]) -> str:
    """Its database."""
    return cramped[1]


def test_what_was_accepted_before_is_there_afterwards_and_nothing_else(
    cramped: tuple[Path, str],
    database_url: str,
    redis_url: str,
    object_store: ObjectStore,
    engine: Engine,
    model: NewModel,
    tell: Tell,
) -> None:
    assert model
    disk, _ = cramped
    with LiveApi(database_url=database_url, redis_url=redis_url, blobs=object_store.blobs()) as api:
        accepted = [new_job(api)["id"] for _ in range(10)]
        slowest = 0.0
        refused = None
        with full_disk(disk):
            deadline = time.monotonic() + 60
            # What is allocated already takes some more.
            while refused is None:
                assert time.monotonic() < deadline, "the disk does not fill"
                began = time.monotonic()
                # As long as a prompt may be, and not to be packed.
                response = api.post(params={"prompt": os.urandom(1000).hex()})
                slowest = max(slowest, time.monotonic() - began)
                if response.status_code == 201:
                    accepted.append(response.json()["id"])
                else:
                    refused = response
            assert_envelope(refused, 503, "database_unavailable")
            assert int(refused.headers["Retry-After"]) >= 1
            assert api.get(f"/v1/jobs/{accepted[0]}").status_code == 200, "what is there can be read"
        began = time.monotonic()
        wait_for(lambda: api.post(params={"prompt": "again"}).status_code == 201, what="an accepted job")
        back = time.monotonic() - began
    with engine.connect() as connection:
        there = set(connection.scalars(text("SELECT id::text FROM jobs WHERE params_json ->> 'prompt' <> 'again'")))
        torn = connection.scalar(
            text("SELECT count(*) FROM jobs WHERE NOT EXISTS (SELECT 1 FROM steps WHERE steps.job_id = jobs.id)")
        )
    assert set(accepted) == there
    assert torn == 0
    assert slowest < 5, "it is to be two seconds at most"
    tell(
        "PostgreSQL's disk full",
        accepted_until_then=len(accepted),
        slowest_POST_s=slowest,
        accepting_again_after_s=back,
        jobs_lost=len(set(accepted) - there),
    )
