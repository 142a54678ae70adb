"""The event stream and the followed log as they go over the wire, through the edge."""

import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dreamforge.api.tail import STIR_SHARE
from tests.running_stack import RunningStack, wait_for
from tests.web import web

pytestmark = pytest.mark.timeout(300)

_DATA = {"seq", "ts", "code", "job_id", "step_id", "attempt", "level", "payload", "progress"}
_PROGRESS = {"fraction", "items_done", "items_total"}
_FRAME = re.compile(r"id: (\d+)\nevent: ([a-z_.]+)\ndata: (\{.*\})")
_KEEP_ALIVE_SECONDS = 15.0


@pytest.fixture(scope="module")
def job(stack: RunningStack) -> dict[str, Any]:
    """A job that has succeeded."""
    return stack.run(count=2, params={"prompt": "a stream", "seed": 5})


@pytest.fixture
def waiting(stack: RunningStack) -> Iterator[dict[str, Any]]:
    """A job that nothing happens to, behind two long ones."""
    jobs = [stack.post(count=100, params={"prompt": "a long one", "steps": 50}).json() for _ in range(3)]
    try:
        wait_for(lambda: stack.get(jobs[0]["links"]["self"]).json()["status"] == "running", what="the first to run")
        yield jobs[-1]
    finally:
        for job in reversed(jobs):
            stack.ask("POST", job["links"]["cancel"])
        for job in jobs:
            stack.wait_for_job(job["id"])


def _seqs(stack: RunningStack, job: dict[str, Any], query: str = "", **headers: str) -> list[int]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    text = stack.ask("GET", job["links"]["stream"] + query, headers=named).text
    return [int(seq) for seq in re.findall(r"^id: (\d+)$", text, re.MULTILINE)]


def test_a_stream_is_made_of_what_the_log_has(stack: RunningStack, job: dict[str, Any]) -> None:
    retry, *frames, rest = stack.get(job["links"]["stream"]).text.split("\n\n")
    assert (retry, rest) == ("retry: 2000", "")
    told = list[dict[str, Any]]()
    for frame in frames:
        found = _FRAME.fullmatch(frame)
        assert found, frame
        seq, code, data = found.groups()
        told.append(json.loads(data))
        assert (told[-1]["seq"], told[-1]["code"]) == (int(seq), code)
        assert set(told[-1]) == _DATA
        assert set(told[-1]["progress"]) == _PROGRESS
    assert [{name: data[name] for name in data if name != "progress"} for data in told] == stack.events(job)
    assert {"job.queued", "item.progress", "artifact.created", "job.succeeded"} <= {data["code"] for data in told}


def test_a_stream_begins_behind_the_place_that_is_named(stack: RunningStack, job: dict[str, Any]) -> None:
    all_of_them = _seqs(stack, job)
    assert len(all_of_them) > 6
    assert _seqs(stack, job, "?after=0") == all_of_them
    assert _seqs(stack, job, "?after=3") == all_of_them[3:]
    assert _seqs(stack, job, Last_Event_ID="4") == all_of_them[4:]
    assert _seqs(stack, job, "?after=2", Last_Event_ID="5") == all_of_them[5:], "a browser repeats the address"
    assert _seqs(stack, job, "?after=5", Last_Event_ID="2") == all_of_them[2:]
    assert stack.get(f"{job['links']['stream']}?after={len(all_of_them)}").status_code == 204


def test_a_stream_in_which_nothing_happens_shows_a_sign_of_life(stack: RunningStack, waiting: dict[str, Any]) -> None:
    request = f"GET {waiting['links']['stream']} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", stack.ports["PORT"]), timeout=60) as connection:
        connection.sendall(request)
        received = _received(connection, b"event: job.queued\n")
        silent_since = time.monotonic()
        received += _received(connection, b": keep-alive\n\n")
        silence = time.monotonic() - silent_since
    assert received.count(b"\nevent: ") == 1, "nothing has happened to it"
    # It is due a little early, and looked for a few times in between; a busy machine may be late.
    assert (1 - STIR_SHARE) * _KEEP_ALIVE_SECONDS - 1 < silence < _KEEP_ALIVE_SECONDS + 10


def _received(connection: socket.socket, mark: bytes) -> bytes:
    """What comes up to a mark."""
    received = b""
    while mark not in received:
        chunk = connection.recv(65536)
        assert chunk, f"it ended before {mark!r}: {received!r}"
        received += chunk
    return received


def test_the_log_of_a_running_job_is_followed_to_its_end(stack: RunningStack) -> None:
    job = stack.post(count=6, params={"prompt": "a followed one", "steps": 30}).json()
    statuses, lines = list[str](), list[str]()
    url = f"{stack.base_url}{job['links']['logs']}?follow=true"
    with web.stream("GET", url, timeout=60) as response:
        assert (response.status_code, response.headers["Content-Type"]) == (200, "application/x-ndjson")
        assert len(response.headers.get_list("X-Request-Id")) == 1
        for line in response.iter_lines():
            # An empty one is a sign of life.
            if line:
                lines.append(line)
                if json.loads(line)["code"] == "item.started":
                    statuses.append(stack.get(job["links"]["self"]).json()["status"])
    assert statuses[0] == "running", "a line comes as it happens"
    assert len(statuses) == 6
    assert stack.get(job["links"]["self"]).json()["status"] == "succeeded"
    assert lines == stack.get(job["links"]["logs"]).text.splitlines()
