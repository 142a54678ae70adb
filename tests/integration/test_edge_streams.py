"""Streams through HAProxy as the edge has it: what is alive stays, and who takes nothing is hung up on."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from dreamforge.api.tail import StreamRules
from dreamforge.edge.configuration import CLIENT_SECONDS
from tests.integration.edge import edge_before
from tests.integration.live_api import LiveApi, MakeApi, happen, new_job, raw_stream, read_until
from tests.service import wait_for

_SECONDS = 3
"""Instead of the two minutes."""


@pytest.fixture
def api(make_api: MakeApi) -> Iterator[LiveApi]:
    with make_api(streams=StreamRules(poll=0.02, idle=0.1, keep_alive=0.5, stall=1.0)) as api:
        yield api


@pytest.fixture
def edge(api: LiveApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL."""
    changes = {f"timeout client {CLIENT_SECONDS}s": f"timeout client {_SECONDS}s"}
    with edge_before(api.port, folder=tmp_path_factory.mktemp("h"), changes=changes) as url:
        yield url


def test_a_stream_that_has_signs_of_life_only_is_not_cut(api: LiveApi, engine: Engine, edge: str) -> None:
    job = new_job(api)
    logs = f"{edge}{job['links']['logs']}?follow=true"
    with raw_stream(edge + job["links"]["stream"]) as events, raw_stream(logs) as log:
        read_until(events, b"job.queued")
        for _ in range(4 * _SECONDS):
            assert read_until(events, b": keep-alive\n\n")
            assert read_until(log, b"\r\n1\r\n\n\r\n")
        happen(engine, job["id"])
        assert b"number 0" in read_until(events, b"number 0")
        assert b"number 0" in read_until(log, b"number 0")


def test_who_takes_nothing_keeps_no_connection(api: LiveApi, engine: Engine, edge: str) -> None:
    job = new_job(api)
    with engine.begin() as connection:
        # More than all the buffers on the way hold.
        connection.execute(
            text(
                """
                INSERT INTO events (job_id, seq, code, level, payload_json, job_progress)
                SELECT CAST(:id AS uuid), n, 'log', 'info', jsonb_build_object('message', repeat('x', 100000)),
                       '{"fraction": 0, "items_done": 0, "items_total": 1}'
                FROM generate_series(2, 400) AS n
                """
            ),
            {"id": job["id"]},
        )
        connection.execute(text("UPDATE jobs SET event_seq = 400"))
    with raw_stream(edge + job["links"]["stream"], window=2048) as slow:
        read_until(slow, b"job.queued")
        assert api.connections > 0
        wait_for(lambda: api.connections == 0, what="the end of the connection")


def test_who_goes_away_costs_the_replica_nothing_any_longer(api: LiveApi, edge: str) -> None:
    job = new_job(api)
    logs = f"{edge}{job['links']['logs']}?follow=true"
    with raw_stream(edge + job["links"]["stream"]) as events, raw_stream(logs) as log:
        read_until(events, b"job.queued")
        read_until(log, b"job.queued")
        assert api.state.tail.readers == 2
    wait_for(lambda: api.state.tail.readers == 0, seconds=5, what="their leaving")
