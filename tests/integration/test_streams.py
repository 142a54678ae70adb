"""Streams of events over a real server and Postgres: everything once, in order, to the right end."""

import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine, text

from dreamforge.api.tail import StreamRules
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.jobs.events import RunnerLog
from dreamforge.store.engine import open_engine
from tests.integration.factories import a_model
from tests.integration.live_api import (
    FAST,
    Follower,
    LiveApi,
    data_of,
    end_abruptly,
    happen,
    raw_stream,
    read_until,
    retry,
)
from tests.relay import Relay
from tests.service import wait_for

MakeApi = Callable[..., LiveApi]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_engine(database_url, application="tests")
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE jobs, models CASCADE"))
    a_model(engine, name="tiny")
    yield engine
    engine.dispose()


@pytest.fixture
def make_api(database_url: str, redis_url: str, object_store: ObjectStore, engine: Engine) -> MakeApi:
    assert engine

    def make(url: str = database_url, streams: StreamRules = FAST) -> LiveApi:
        return LiveApi(database_url=url, redis_url=redis_url, blobs=object_store.blobs(), streams=streams)

    return make


@pytest.fixture
def api(make_api: MakeApi) -> Iterator[LiveApi]:
    with make_api() as api:
        yield api


def _job(api: LiveApi, **body: Any) -> dict[str, Any]:
    response = api.post(params={"prompt": "a fox"}, **body)
    assert response.status_code == 201, response.text
    return response.json()


def _stream(api: LiveApi, job: dict[str, Any]) -> str:
    return api.base_url + job["links"]["stream"]


def _log(api: LiveApi, job: dict[str, Any]) -> str:
    return f"{api.base_url}{job['links']['logs']}?follow=true"


def _follow(api: LiveApi, job: dict[str, Any], query: str = "", **headers: str) -> Follower:
    return Follower(_stream(api, job) + query, **headers)


def test_a_stream_tells_everything_from_the_start_and_ends_with_the_job(api: LiveApi, engine: Engine) -> None:
    job = _job(api, count=3)
    happen(engine, job["id"], count=4)
    follower = _follow(api, job)
    wait_for(lambda: len(follower.heard) == 5, what="the history")
    happen(engine, job["id"], count=5)
    wait_for(lambda: len(follower.heard) == 10, what="what came later")
    assert not follower.is_done
    end_abruptly(engine, job["id"])
    follower.wait()
    assert follower.error is None
    assert follower.seqs == list(range(1, 12))
    assert follower.ids == [str(seq) for seq in follower.seqs]
    first, last = follower.heard[0], follower.heard[-1]
    assert (first["code"], last["code"]) == ("job.queued", "job.failed")
    assert first["progress"] == {"fraction": 0.0, "items_done": 0, "items_total": 3}
    lines = {line["seq"]: line for line in api.events(job)}
    assert all({**lines[event["seq"]], "progress": event["progress"]} == event for event in follower.heard)


def test_the_wire_is_as_browsers_and_proxies_want_it(api: LiveApi) -> None:
    job = _job(api)
    with raw_stream(_stream(api, job)) as connection:
        received = read_until(connection, b'"items_total":1}}\n\n')
    head, _, body = received.partition(b"\r\n\r\n")
    headers = head.lower().split(b"\r\n")
    assert headers[0] == b"http/1.1 200 ok"
    assert {b"cache-control: no-store", b"x-accel-buffering: no"} <= set(headers)
    assert b"content-type: text/event-stream" in head.lower()
    assert b"x-request-id: " in head.lower()
    assert b"retry: 2000\n\n" in body
    assert b"id: 1\nevent: job.queued\ndata: {" in body


def test_it_goes_on_after_any_event(api: LiveApi, engine: Engine) -> None:
    job = _job(api)
    happen(engine, job["id"], count=5)
    end_abruptly(engine, job["id"])
    for place in range(7):
        assert _follow(api, job, **{"Last-Event-ID": str(place)}).wait().seqs == list(range(place + 1, 8))
        assert _follow(api, job, f"?after={place}").wait().seqs == list(range(place + 1, 8))
    both = _follow(api, job, "?after=1", **{"Last-Event-ID": "5"}).wait()
    assert both.seqs == [6, 7], "a browser repeats the address and adds the header"
    assert _follow(api, job, **{"Last-Event-ID": "0007"}).wait().status == 204


def test_who_has_everything_of_a_job_that_is_over_is_told_to_stay_away(api: LiveApi, engine: Engine) -> None:
    job = _job(api)
    end_abruptly(engine, job["id"])
    response = httpx2.get(_stream(api, job), headers={"Last-Event-ID": "2"})
    assert (response.status_code, response.content) == (204, b"")
    retry(engine, job["id"])
    follower = _follow(api, job, **{"Last-Event-ID": "2"})
    wait_for(lambda: follower.seqs == [3], what="the retry")


@pytest.mark.parametrize(
    "place",
    ["banana", "-1", "", "1.0", "0x1", "+1", "1 1", "1, 1", "²", "3", str(2**63), str(2**63 - 1), "9" * 19, "9" * 400],
)
@pytest.mark.parametrize("is_over", [False, True])
def test_a_place_that_is_none_is_refused(api: LiveApi, engine: Engine, place: str, is_over: bool) -> None:
    job = _job(api)
    end_abruptly(engine, job["id"]) if is_over else happen(engine, job["id"])
    response = httpx2.get(_stream(api, job), headers=[(b"Last-Event-ID", place.encode())])
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")
    assert place not in response.json()["error"]["message"] or len(place) < 20


def test_two_places_are_none(api: LiveApi) -> None:
    job = _job(api)
    response = httpx2.get(_stream(api, job), headers=[("Last-Event-ID", "0"), ("Last-Event-ID", "1")])
    assert response.status_code == 400


@pytest.mark.parametrize("query", ["after=banana", "after=-1", "after=", f"after={2**63}"])
def test_a_place_in_the_address_that_is_no_number_is_refused(api: LiveApi, query: str) -> None:
    job = _job(api)
    assert httpx2.get(f"{_stream(api, job)}?{query}").status_code == 422
    assert httpx2.get(f"{_stream(api, job)}?after=7").status_code == 400, "ahead of the job"


def test_jobs_that_are_not_there_have_no_events(api: LiveApi) -> None:
    for job_id in ("17", str(uuid.uuid4()), "%00", "a%2Fb"):
        for path in ("logs", "logs?follow=true", "progress", "progress/stream"):
            assert api.get(f"/v1/jobs/{job_id}/{path}").status_code == 404


def test_an_end_before_a_retry_is_none(api: LiveApi, engine: Engine) -> None:
    job = _job(api)
    end_abruptly(engine, job["id"])
    retry(engine, job["id"])
    follower = _follow(api, job)
    wait_for(lambda: follower.seqs == [1, 2, 3], what="the history")
    happen(engine, job["id"])
    wait_for(lambda: follower.seqs == [1, 2, 3, 4], what="what came after the retry")
    assert not follower.is_done
    end_abruptly(engine, job["id"], status="cancelled", code="job.cancelled")
    assert follower.wait().seqs == [1, 2, 3, 4, 5]


def test_a_long_history_and_what_comes_meanwhile_are_one_sequence(api: LiveApi, engine: Engine) -> None:
    """Readers that join at any moment, while events are written, miss nothing and hear nothing twice."""
    job = _job(api)
    happen(engine, job["id"], count=1200)
    writer = threading.Thread(target=happen, args=(engine, job["id"]), kwargs={"count": 300})
    writer.start()
    followers = [_follow(api, job, f"?after={place}") for place in (0, 1, 499, 500, 501, 1000, 1201)]
    while writer.is_alive():
        followers.append(_follow(api, job, f"?after={len(followers) * 3}"))
        writer.join(0.2)
    end_abruptly(engine, job["id"])
    for follower in followers:
        follower.wait()
        assert follower.error is None
        assert follower.seqs == list(range(1502 - len(follower.seqs) + 1, 1503))
    assert followers[0].seqs[0] == 1


def test_the_history_is_told_as_of_then(api: LiveApi, engine: Engine) -> None:
    job = _job(api, count=2)
    for fraction, done in ((0.25, 0), (0.5, 1), (0.75, 1), (1.0, 2)):
        with engine.begin() as connection:
            connection.execute(text("UPDATE jobs SET progress = :f, items_done = :d"), {"f": fraction, "d": done})
        happen(engine, job["id"])
    end_abruptly(engine, job["id"], status="succeeded", code="job.succeeded")
    told = [event["progress"] for event in _follow(api, job).wait().heard]
    assert [progress["items_done"] for progress in told] == [0, 0, 1, 1, 2, 2]
    assert [progress["fraction"] for progress in told] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_silence_is_broken_by_signs_of_life(make_api: MakeApi, engine: Engine) -> None:
    with make_api(streams=StreamRules(poll=0.02, idle=0.1, keep_alive=0.3)) as api:
        job = _job(api)
        with (
            raw_stream(_stream(api, job)) as events,
            raw_stream(f"{api.base_url}{job['links']['logs']}?follow=true") as log,
        ):
            read_until(events, b": keep-alive\n\n")
            read_until(events, b": keep-alive\n\n")
            # Chunks of one line break each.
            read_until(log, b"\r\n1\r\n\n\r\n")
            happen(engine, job["id"])
            assert next(data_of(read_until(events, b"\n\n\r\n")))["seq"] == 2


def test_who_leaves_leaves_nothing_behind(make_api: MakeApi) -> None:
    with make_api() as api:
        tail = api.state.tail
        job = _job(api)
        with (
            raw_stream(_stream(api, job)) as one,
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
        job = _job(api)
        with raw_stream(_stream(api, job), window=2048) as slow:
            quick = _follow(api, job)
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
        resumed = _follow(api, job, **{"Last-Event-ID": str(seqs[-1])}).wait()
        assert seqs + resumed.seqs == list(range(1, 63)) == quick.wait().seqs


def test_a_reader_that_is_far_behind_is_read_to_from_postgres(make_api: MakeApi, engine: Engine) -> None:
    """The channel keeps the last events only; who takes longer loses nothing."""
    with make_api() as api:
        job = _job(api)
        with raw_stream(_stream(api, job), window=16384) as slow:
            read_until(slow, b"job.queued")
            quick = _follow(api, job)
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
        jobs = [_job(api) for _ in range(3)]

        def looks(seconds: float) -> int:
            before = len(api.statements)
            time.sleep(seconds)
            return len(api.statements) - before

        few = [_follow(api, job) for job in jobs]
        wait_for(lambda: all(follower.heard for follower in few), what="one for each")
        alone = looks(2.0)
        many = [_follow(api, job) for job in jobs for _ in range(20)]
        wait_for(lambda: all(follower.heard for follower in many), what="many for each")
        crowded = looks(2.0)
        # One statement each 0.1 s, for all jobs; a busy machine may look less often.
        assert 2 <= alone <= 24
        assert crowded <= 24
        for job in jobs:
            end_abruptly(engine, job["id"])
        assert all(follower.wait().seqs == [1, 2] for follower in few + many)
        wait_for(lambda: not api.state.tail.is_polling, what="sleep")


def test_idle_streams_hold_no_connections(make_api: MakeApi, engine: Engine) -> None:
    with make_api() as api:
        job = _job(api)
        followers = [_follow(api, job) for _ in range(40)]
        wait_for(lambda: all(follower.heard for follower in followers), what="forty, with a pool of ten")
        assert httpx2.get(f"{api.base_url}/v1/models").status_code == 200
        end_abruptly(engine, job["id"])
        assert all(follower.wait().error is None for follower in followers)


@pytest.mark.parametrize("how", ["refusing", "frozen"])
def test_a_database_that_goes_away_and_comes_back(
    make_api: MakeApi, engine: Engine, database_url: str, how: str
) -> None:
    with Relay.before(database_url) as relay, make_api(relay.moved(database_url)) as api:
        job = _job(api)
        follower = _follow(api, job)
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
            seqs = seqs + _follow(api, job, **{"Last-Event-ID": str(seqs[-1])}).wait().seqs
        assert seqs == [1, 2, 3, 4, 5]


def test_without_a_database_a_stream_does_not_begin(make_api: MakeApi) -> None:
    with make_api("postgresql://u:p@127.0.0.1:1/d") as api:
        for path in ("progress/stream", "progress", "logs?follow=true"):
            response = api.get(f"/v1/jobs/{uuid.uuid4()}/{path}")
            assert (response.status_code, response.json()["error"]["code"]) == (503, "database_unavailable")


def test_a_replica_that_leaves_breaks_its_streams_off(make_api: MakeApi, engine: Engine) -> None:
    with make_api() as leaving, make_api() as staying:
        job = _job(leaving)
        follower = _follow(leaving, job)
        with raw_stream(_log(leaving, job)) as log:
            wait_for(lambda: follower.heard, what="the history")
            read_until(log, b"job.queued")
            leaving.stop()
            assert b"0\r\n\r\n" not in read_until(log, b"nothing"), "it has not ended"
        follower.wait()
        assert isinstance(follower.error, httpx2.RemoteProtocolError), "it has not ended"
        happen(engine, job["id"])
        end_abruptly(engine, job["id"])
        resumed = _follow(staying, job, **{"Last-Event-ID": "1"}).wait()
        assert follower.seqs + resumed.seqs == [1, 2, 3]


def test_a_deleted_job_s_stream_breaks_off(api: LiveApi, engine: Engine) -> None:
    job = _job(api)
    follower = _follow(api, job)
    wait_for(lambda: follower.heard, what="the history")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM jobs"))
    assert follower.wait().error is not None
    assert _follow(api, job, **{"Last-Event-ID": "1"}).wait().status == 404


def test_the_log_is_followed_to_the_end(api: LiveApi, engine: Engine) -> None:
    job = _job(api)
    happen(engine, job["id"], count=2)
    url = api.base_url + job["links"]["logs"]
    with httpx2.stream("GET", f"{url}?follow=true&after=1", timeout=60) as response:
        assert response.headers["Content-Type"].startswith("application/x-ndjson")
        assert response.headers["Cache-Control"] == "no-store"
        lines = (json.loads(line) for line in response.iter_lines() if line)
        assert [next(lines)["seq"] for _ in range(2)] == [2, 3]
        happen(engine, job["id"])
        assert next(lines)["seq"] == 4
        end_abruptly(engine, job["id"])
        assert [line["code"] for line in lines] == ["job.failed"]
    assert httpx2.get(f"{url}?follow=true&after=5").content == b"", "it is over, and all is known"
    assert httpx2.get(f"{url}?follow=true&after=6").status_code == 400
    assert httpx2.get(f"{url}?after=6").content == b""


@pytest.mark.parametrize("follow", ["", "&follow=true"])
def test_the_log_is_filtered(api: LiveApi, engine: Engine, follow: str) -> None:
    job = _job(api, count=2)
    set_level = text("UPDATE events SET level = 'warning', payload_json = '{\"item_index\": 1}' WHERE seq = 3")
    happen(engine, job["id"], count=4)
    with engine.begin() as connection:
        connection.execute(set_level)
    end_abruptly(engine, job["id"])
    url = api.base_url + job["links"]["logs"]
    for query, expected in (
        ("level=warning", [3]),
        ("level=warning&level=error", [3]),
        ("code=log&after=3", [4, 5]),
        ("code=job.queued&code=job.failed", [1, 6]),
        ("item_index=1", [3]),
        ("item_index=0", []),
        ("", [1, 2, 3, 4, 5, 6]),
    ):
        lines = httpx2.get(f"{url}?{query}{follow}").text.splitlines()
        assert [json.loads(line)["seq"] for line in lines] == expected, query
    for query in ("level=loud", "code=nothing", "item_index=100", "follow=perhaps"):
        assert httpx2.get(f"{url}?{query}").status_code == 422


def test_a_stream_is_not_stopped_by_what_is_sent_into_it(api: LiveApi, engine: Engine) -> None:
    """Bytes behind the request are another request, for which there is time when the stream is over."""
    job = _job(api)
    with raw_stream(_stream(api, job)) as connection:
        read_until(connection, b"job.queued")
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        happen(engine, job["id"])
        read_until(connection, b"number 0")
        end_abruptly(engine, job["id"])
        assert b'{"status":"ok"}' in read_until(connection, b'{"status":"ok"}')
        connection.shutdown(socket.SHUT_WR)
