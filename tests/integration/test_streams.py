"""Streams and logs over a real server and Postgres: everything once, in order, to the right end."""

import json
import threading
import uuid

import pytest
from sqlalchemy import Engine, text

from dreamforge.api.tail import StreamRules
from tests.integration.live_api import (
    LiveApi,
    MakeApi,
    data_of,
    end_abruptly,
    follow,
    happen,
    new_job,
    raw_stream,
    read_until,
    retry,
    stream_of,
)
from tests.service import wait_for
from tests.web import web


def test_a_stream_tells_everything_from_the_start_and_ends_with_the_job(api: LiveApi, engine: Engine) -> None:
    job = new_job(api, count=3)
    happen(engine, job["id"], count=4)
    follower = follow(api, job)
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
    job = new_job(api)
    with raw_stream(stream_of(api, job)) as connection:
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
    job = new_job(api)
    happen(engine, job["id"], count=5)
    end_abruptly(engine, job["id"])
    for place in range(7):
        assert follow(api, job, **{"Last-Event-ID": str(place)}).wait().seqs == list(range(place + 1, 8))
        assert follow(api, job, f"?after={place}").wait().seqs == list(range(place + 1, 8))
    both = follow(api, job, "?after=1", **{"Last-Event-ID": "5"}).wait()
    assert both.seqs == [6, 7], "a browser repeats the address and adds the header"
    assert follow(api, job, **{"Last-Event-ID": "0007"}).wait().status == 204


def test_who_has_everything_of_a_job_that_is_over_is_told_to_stay_away(api: LiveApi, engine: Engine) -> None:
    job = new_job(api)
    end_abruptly(engine, job["id"])
    response = web.get(stream_of(api, job), headers={"Last-Event-ID": "2"})
    assert (response.status_code, response.content) == (204, b"")
    retry(engine, job["id"])
    follower = follow(api, job, **{"Last-Event-ID": "2"})
    wait_for(lambda: follower.seqs == [3], what="the retry")


@pytest.mark.parametrize(
    "place",
    ["banana", "-1", "", "1.0", "0x1", "+1", "1 1", "1, 1", "²", "3", str(2**63), str(2**63 - 1), "9" * 19, "9" * 400],
)
@pytest.mark.parametrize("is_over", [False, True])
def test_a_place_that_is_none_is_refused(api: LiveApi, engine: Engine, place: str, is_over: bool) -> None:
    job = new_job(api)
    end_abruptly(engine, job["id"]) if is_over else happen(engine, job["id"])
    response = web.get(stream_of(api, job), headers=[(b"Last-Event-ID", place.encode())])
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")
    assert place not in response.json()["error"]["message"] or len(place) < 20


def test_two_places_are_none(api: LiveApi) -> None:
    job = new_job(api)
    response = web.get(stream_of(api, job), headers=[("Last-Event-ID", "0"), ("Last-Event-ID", "1")])
    assert response.status_code == 400


@pytest.mark.parametrize("query", ["after=banana", "after=-1", "after=", f"after={2**63}"])
def test_a_place_in_the_address_that_is_no_number_is_refused(api: LiveApi, query: str) -> None:
    job = new_job(api)
    assert web.get(f"{stream_of(api, job)}?{query}").status_code == 422
    assert web.get(f"{stream_of(api, job)}?after=7").status_code == 400, "ahead of the job"


def test_jobs_that_are_not_there_have_no_events(api: LiveApi) -> None:
    for job_id in ("17", str(uuid.uuid4()), "%00", "a%2Fb"):
        for path in ("logs", "logs?follow=true", "progress", "progress/stream"):
            assert api.get(f"/v1/jobs/{job_id}/{path}").status_code == 404


def test_an_end_before_a_retry_is_none(api: LiveApi, engine: Engine) -> None:
    job = new_job(api)
    end_abruptly(engine, job["id"])
    retry(engine, job["id"])
    follower = follow(api, job)
    wait_for(lambda: follower.seqs == [1, 2, 3], what="the history")
    happen(engine, job["id"])
    wait_for(lambda: follower.seqs == [1, 2, 3, 4], what="what came after the retry")
    assert not follower.is_done
    end_abruptly(engine, job["id"], status="cancelled", code="job.cancelled")
    assert follower.wait().seqs == [1, 2, 3, 4, 5]


def test_a_long_history_and_what_comes_meanwhile_are_one_sequence(api: LiveApi, engine: Engine) -> None:
    """Readers that join at any moment, while events are written, miss nothing and hear nothing twice."""
    job = new_job(api)
    happen(engine, job["id"], count=1200)
    writer = threading.Thread(target=happen, args=(engine, job["id"]), kwargs={"count": 300})
    writer.start()
    followers = [follow(api, job, f"?after={place}") for place in (0, 1, 499, 500, 501, 1000, 1201)]
    while writer.is_alive():
        followers.append(follow(api, job, f"?after={len(followers) * 3}"))
        writer.join(0.2)
    end_abruptly(engine, job["id"])
    for follower in followers:
        follower.wait()
        assert follower.error is None
        assert follower.seqs == list(range(1502 - len(follower.seqs) + 1, 1503))
    assert followers[0].seqs[0] == 1


def test_the_history_is_told_as_of_then(api: LiveApi, engine: Engine) -> None:
    job = new_job(api, count=2)
    for fraction, done in ((0.25, 0), (0.5, 1), (0.75, 1), (1.0, 2)):
        with engine.begin() as connection:
            connection.execute(text("UPDATE jobs SET progress = :f, items_done = :d"), {"f": fraction, "d": done})
        happen(engine, job["id"])
    end_abruptly(engine, job["id"], status="succeeded", code="job.succeeded")
    told = [event["progress"] for event in follow(api, job).wait().heard]
    assert [progress["items_done"] for progress in told] == [0, 0, 1, 1, 2, 2]
    assert [progress["fraction"] for progress in told] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_silence_is_broken_by_signs_of_life(make_api: MakeApi, engine: Engine) -> None:
    with make_api(streams=StreamRules(poll=0.02, idle=0.1, keep_alive=0.3)) as api:
        job = new_job(api)
        with (
            raw_stream(stream_of(api, job)) as events,
            raw_stream(f"{api.base_url}{job['links']['logs']}?follow=true") as log,
        ):
            read_until(events, b": keep-alive\n\n")
            read_until(events, b": keep-alive\n\n")
            # Chunks of one line break each.
            read_until(log, b"\r\n1\r\n\n\r\n")
            happen(engine, job["id"])
            assert next(data_of(read_until(events, b"\n\n\r\n")))["seq"] == 2


def test_the_log_is_followed_to_the_end(api: LiveApi, engine: Engine) -> None:
    job = new_job(api)
    happen(engine, job["id"], count=2)
    url = api.base_url + job["links"]["logs"]
    with web.stream("GET", f"{url}?follow=true&after=1", timeout=60) as response:
        assert response.headers["Content-Type"].startswith("application/x-ndjson")
        assert response.headers["Cache-Control"] == "no-store"
        lines = (json.loads(line) for line in response.iter_lines() if line)
        assert [next(lines)["seq"] for _ in range(2)] == [2, 3]
        happen(engine, job["id"])
        assert next(lines)["seq"] == 4
        end_abruptly(engine, job["id"])
        assert [line["code"] for line in lines] == ["job.failed"]
    assert web.get(f"{url}?follow=true&after=5").content == b"", "it is over, and all is known"
    assert web.get(f"{url}?follow=true&after=6").status_code == 400
    assert web.get(f"{url}?after=6").content == b""


@pytest.mark.parametrize("follow", ["", "&follow=true"])
def test_the_log_is_filtered(api: LiveApi, engine: Engine, follow: str) -> None:
    job = new_job(api, count=2)
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
        lines = web.get(f"{url}?{query}{follow}").text.splitlines()
        assert [json.loads(line)["seq"] for line in lines] == expected, query
    for query in ("level=loud", "code=nothing", "item_index=100", "follow=perhaps"):
        assert web.get(f"{url}?{query}").status_code == 422
