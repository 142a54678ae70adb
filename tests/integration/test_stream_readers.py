"""Readers of streams that are slow, many, or leave, and a service that leaves them."""

import json
import socket
import time
import uuid

import httpx2
import pytest
from sqlalchemy import Engine, text

from dreamforge.api.tail import StreamRules
from dreamforge.jobs.events import RunnerLog
from tests.integration.live_api import (
    FAST,
    LiveApi,
    MakeApi,
    end_abruptly,
    follow,
    happen,
    log_of,
    new_job,
    raw_stream,
    read_until,
    stream_of,
)
from tests.relay import Relay
from tests.service import wait_for
from tests.web import web


def test_who_leaves_leaves_nothing_behind(make_api: MakeApi) -> None:
    with make_api() as api:
        tail = api.state.tail
        job = new_job(api)
        with (
            raw_stream(stream_of(api, job)) as one,
            raw_stream(f"{api.base_url}{job['links']['logs']}?follow=true") as two,
        ):
            for connection in (one, two):
                read_until(connection, b"job.queued")
            wait_for(lambda: tail.readers == 2, what="both")
            assert tail.is_polling
        # Nothing is sent, and nothing happens.
        wait_for(lambda: tail.readers == 0, seconds=5, what="their leaving")
        wait_for(lambda: not tail.is_polling, what="sleep")
        before = len(api.statements)
        time.sleep(0.5)
        assert len(api.statements) == before, "nobody is listening"


def test_a_slow_reader_is_cut_off_and_holds_nobody_up(make_api: MakeApi, engine: Engine) -> None:
    with make_api(streams=StreamRules(poll=0.02, idle=0.1, stall=1.5)) as api:
        job = new_job(api)
        with raw_stream(stream_of(api, job), window=2048) as slow:
            quick = follow(api, job)
            happen(engine, job["id"], count=60, what=RunnerLog(message="x" * 100_000))
            wait_for(lambda: len(quick.heard) == 61, what="the quick one")
            wait_for(lambda: api.state.tail.readers == 1, what="the slow one's end")
            received = b""
            while chunk := slow.recv(1 << 20):
                received += chunk
        # What it has whole it keeps; what was torn comes again.
        whole = received.rpartition(b"\n\n")[0]
        seqs = [int(line[4:]) for line in whole.splitlines() if line.startswith(b"id: ")]
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(seqs) < 61
        assert b"\r\n0\r\n\r\n" not in received, "it has not ended"
        end_abruptly(engine, job["id"])
        resumed = follow(api, job, **{"Last-Event-ID": str(seqs[-1])}).wait()
        assert seqs + resumed.seqs == list(range(1, 63)) == quick.wait().seqs


def test_a_reader_that_is_far_behind_is_read_to_from_postgres(make_api: MakeApi, engine: Engine) -> None:
    """The channel keeps the last events only; who takes longer loses nothing."""
    with make_api() as api:
        job = new_job(api)
        with raw_stream(stream_of(api, job), window=16384) as slow:
            read_until(slow, b"job.queued")
            quick = follow(api, job)
            with engine.begin() as connection:
                connection.execute(
                    text(
                        """
                        INSERT INTO events (job_id, seq, code, level, payload_json, job_progress)
                        SELECT CAST(:id AS uuid), n, 'log', 'info', jsonb_build_object('message', repeat('x', 5000)),
                               '{"fraction": 0, "items_done": 0, "items_total": 1}'
                        FROM generate_series(2, 3000) AS n
                        """
                    ),
                    {"id": job["id"]},
                )
                connection.execute(text("UPDATE jobs SET event_seq = 3000"))
            wait_for(lambda: len(quick.heard) == 3000, what="the quick one")
            end_abruptly(engine, job["id"])
            received = read_until(slow, b"\r\n0\r\n\r\n")
        assert [line for line in received.splitlines() if line.startswith(b"id: ")] == [
            b"id: %d" % n for n in range(2, 3002)
        ]
        assert quick.wait().seqs == list(range(1, 3002))


def test_clients_cost_postgres_nothing(make_api: MakeApi, engine: Engine) -> None:
    with make_api() as api:
        jobs = [new_job(api) for _ in range(3)]

        def looks(seconds: float) -> int:
            before = len(api.statements)
            time.sleep(seconds)
            return len(api.statements) - before

        few = [follow(api, job) for job in jobs]
        wait_for(lambda: all(follower.heard for follower in few), what="one for each")
        alone = looks(2.0)
        many = [follow(api, job) for job in jobs for _ in range(20)]
        wait_for(lambda: all(follower.heard for follower in many), what="many for each")
        crowded = looks(2.0)
        # One statement for all jobs at each look; a busy machine may look less often.
        most = 1.2 * 2.0 / FAST.poll
        assert 2 <= alone <= most
        assert crowded <= most
        for job in jobs:
            end_abruptly(engine, job["id"])
        assert all(follower.wait().seqs == [1, 2] for follower in few + many)
        wait_for(lambda: not api.state.tail.is_polling, what="sleep")


def test_idle_streams_hold_no_connections(make_api: MakeApi, engine: Engine) -> None:
    with make_api() as api:
        job = new_job(api)
        followers = [follow(api, job) for _ in range(40)]
        wait_for(lambda: all(follower.heard for follower in followers), what="forty, with a pool of ten")
        assert web.get(f"{api.base_url}/v1/models").status_code == 200
        end_abruptly(engine, job["id"])
        assert all(follower.wait().error is None for follower in followers)


@pytest.mark.parametrize("how", ["refusing", "frozen"])
def test_a_database_that_goes_away_and_comes_back(
    make_api: MakeApi, engine: Engine, database_url: str, how: str
) -> None:
    with Relay.before(database_url) as relay, make_api(relay.moved(database_url)) as api:
        job = new_job(api)
        follower = follow(api, job)
        wait_for(lambda: follower.seqs == [1], what="the history")
        with getattr(relay, how)():
            happen(engine, job["id"], count=3)
            time.sleep(1.0)
            assert follower.seqs == [1]
        wait_for(lambda: follower.seqs == [1, 2, 3, 4] or follower.is_done, what="what happened meanwhile")
        end_abruptly(engine, job["id"])
        follower.wait()
        seqs = follower.seqs
        if follower.error is not None:
            seqs = seqs + follow(api, job, **{"Last-Event-ID": str(seqs[-1])}).wait().seqs
        assert seqs == [1, 2, 3, 4, 5]


def test_without_a_database_a_stream_does_not_begin(make_api: MakeApi) -> None:
    with make_api("postgresql://u:p@127.0.0.1:1/d") as api:
        for path in ("progress/stream", "progress", "logs?follow=true"):
            response = api.get(f"/v1/jobs/{uuid.uuid4()}/{path}")
            assert (response.status_code, response.json()["error"]["code"]) == (503, "database_unavailable")


def test_a_replica_that_leaves_breaks_its_streams_off(make_api: MakeApi, engine: Engine) -> None:
    with make_api() as leaving, make_api() as staying:
        job = new_job(leaving)
        follower = follow(leaving, job)
        with raw_stream(log_of(leaving, job)) as log:
            wait_for(lambda: follower.heard, what="the history")
            read_until(log, b"job.queued")
            leaving.stop()
            assert b"0\r\n\r\n" not in read_until(log, b"nothing"), "it has not ended"
        follower.wait()
        assert isinstance(follower.error, httpx2.RemoteProtocolError), "it has not ended"
        happen(engine, job["id"])
        end_abruptly(engine, job["id"])
        resumed = follow(staying, job, **{"Last-Event-ID": "1"}).wait()
        assert follower.seqs + resumed.seqs == [1, 2, 3]


def test_a_deleted_job_s_stream_breaks_off(api: LiveApi, engine: Engine) -> None:
    job = new_job(api)
    follower = follow(api, job)
    wait_for(lambda: follower.heard, what="the history")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM jobs"))
    assert follower.wait().error is not None
    assert follow(api, job, **{"Last-Event-ID": "1"}).wait().status == 404


def test_a_stream_is_not_stopped_by_what_is_sent_into_it(api: LiveApi, engine: Engine) -> None:
    """Bytes behind the request are another request, for which there is time when the stream is over."""
    job = new_job(api)
    with raw_stream(stream_of(api, job)) as connection:
        read_until(connection, b"job.queued")
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        happen(engine, job["id"])
        read_until(connection, b"number 0")
        end_abruptly(engine, job["id"])
        assert b'{"status":"ok"}' in read_until(connection, b'{"status":"ok"}')
        connection.shutdown(socket.SHUT_WR)


def test_a_log_s_reader_that_takes_nothing_is_cut_off_too(make_api: MakeApi, engine: Engine) -> None:
    with make_api(streams=StreamRules(stall=0.5)) as api:
        job = new_job(api)
        happen(engine, job["id"], count=150, what=RunnerLog(message="x" * 100_000))
        whole = web.get(api.base_url + job["links"]["logs"], timeout=60)
        assert [json.loads(line)["seq"] for line in whole.text.splitlines()] == list(range(1, 152))
        assert whole.headers["Cache-Control"] == "no-store"
        with raw_stream(api.base_url + job["links"]["logs"], window=2048) as slow:
            read_until(slow, b"job.queued")
            time.sleep(2.0)
            assert b"\r\n0\r\n\r\n" not in read_until(slow, b"nothing"), "it has not ended"


def test_a_log_that_is_read_once_does_not_wait_for_those_who_read_history(make_api: MakeApi) -> None:
    with make_api() as api:
        job = new_job(api)
        # All places are taken, and nobody gives one back.
        api.state.tail._reading._value = 0  # pyright: ignore[reportPrivateUsage] - as if all read
        assert web.get(api.base_url + job["links"]["logs"], timeout=60).status_code == 200
        assert web.get(stream_of(api, job), timeout=60).status_code == 503
