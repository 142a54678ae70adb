"""Operations on jobs by HTTP, through the edge and over both replicas."""

import hashlib
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from dreamforge.client import Client
from tests.running_stack import RunningStack, wait_for
from tests.web import web

pytestmark = pytest.mark.timeout(400)

_LONG = {"prompt": "a long one", "steps": 50}
_STILL = ("id", "type", "model_id", "count", "priority", "params", "options", "metadata", "created_at", "links")
"""What of a job never changes."""


def _post(stack: RunningStack, headers: dict[str, str] | None = None, **body: Any) -> httpx2.Response:
    return stack.ask("POST", "/v1/jobs", json={"type": "generate", **body}, headers=headers or {}, timeout=120)


def _act(stack: RunningStack, method: str, path: str) -> httpx2.Response:
    return stack.ask(method, path, timeout=30)


def _jobs_of(stack: RunningStack, mark: str) -> list[dict[str, Any]]:
    listed = stack.get("/v1/jobs?limit=200").json()["items"]
    return [job for job in listed if job["metadata"].get("mark") == mark]


def test_a_post_may_be_held_until_the_images_are_there(stack: RunningStack) -> None:
    answer = _post(stack, {"Prefer": "wait=60"}, params={"prompt": "a fox"})
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (201, "wait=60")
    job = answer.json()
    assert job["status"] == "succeeded"
    assert len(stack.artifacts(job)) == 1


def test_a_held_post_ends_with_its_time(stack: RunningStack) -> None:
    began = time.monotonic()
    answer = _post(stack, {"Prefer": "wait=2"}, count=40, params=_LONG)
    assert time.monotonic() - began >= 2
    assert answer.json()["status"] in {"queued", "running"}
    _act(stack, "POST", answer.json()["links"]["cancel"])


def test_fifty_posts_with_one_key_over_both_replicas_make_one_job(stack: RunningStack) -> None:
    headers, together = {"Idempotency-Key": "fifty-at-once"}, threading.Barrier(50)

    def post(_: int) -> httpx2.Response:
        together.wait()
        answers = (_post(stack, headers, params={"prompt": "one fox"}, metadata={"mark": "fifty"}) for _ in range(20))
        # A replica with too much to do says so; with a key it is safe to ask again.
        return next(answer for answer in answers if answer.status_code != 503)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(post, range(50)))
    assert {answer.status_code for answer in answers} == {201}, {answer.text for answer in answers}
    first, *others = [{name: answer.json()[name] for name in _STILL} for answer in answers]
    assert others == [first] * 49
    # All of them, when the first was answered by 503.
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) in {49, 50}
    (job,) = _jobs_of(stack, "fifty")
    assert stack.wait_for_job(job["id"])["status"] == "succeeded"
    refused = _post(stack, headers, params={"prompt": "another"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_key_reused")


def test_a_post_whose_answer_was_lost_is_repeated_and_makes_one_job(stack: RunningStack) -> None:
    body = {"type": "generate", "params": {"prompt": "a cut one"}, "metadata": {"mark": "cut"}}
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: cut-off\r\nContent-Length: {len(content)}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", stack.ports["PORT"]), timeout=30) as connection:
        connection.sendall(head + content)
        wait_for(lambda: _jobs_of(stack, "cut"), what="the job")
    (job,) = _jobs_of(stack, "cut")
    answers = [_post(stack, {"Idempotency-Key": "cut-off"}, **body) for _ in range(3)]
    assert [(answer.status_code, answer.headers.get("Idempotency-Replayed")) for answer in answers] == [
        (201, "true")
    ] * 3
    assert {answer.json()["id"] for answer in answers} == {job["id"]}
    assert stack.wait_for_job(job["id"])["status"] == "succeeded"
    assert len(_jobs_of(stack, "cut")) == 1


def test_a_cancelled_job_is_retried_to_its_end_and_then_deleted(stack: RunningStack) -> None:
    job = _post(stack, count=12, params={**_LONG, "steps": 20, "seed": 3}).json()
    path = job["links"]["self"]
    wait_for(lambda: stack.get(path).json()["progress"]["items_done"] >= 1, seconds=120, what="an image")
    wait_for(lambda: stack.get(path).json()["progress"]["eta_seconds"] is not None, what="an ETA")
    assert _act(stack, "DELETE", path).status_code == 409
    assert _act(stack, "POST", f"{path}/retry").status_code == 409
    _act(stack, "POST", job["links"]["cancel"])
    assert stack.wait_for_job(job["id"])["status"] == "cancelled"
    kept = stack.artifacts(job)
    assert 1 <= len(kept) < 12
    old_end = len(stack.events(job))
    answer = _act(stack, "POST", f"{path}/retry")
    assert (answer.status_code, answer.json()["progress"]["items_done"]) == (202, len(kept))
    # To its end, which is not the one before the retry.
    streamed = stack.ask("GET", job["links"]["stream"], timeout=120)
    ended = stack.get(path).json()
    assert (ended["status"], ended["progress"]["items_done"], ended["steps"][0]["attempt"]) == ("succeeded", 12, 2)
    images = stack.artifacts(job)
    assert images[: len(kept)] == [
        {**image, "url": now["url"], "url_expires_at": now["url_expires_at"]}
        for image, now in zip(kept, images, strict=False)
    ], "what was finished was not drawn again"
    assert [image["seed"] for image in images] == list(range(3, 15))
    codes = [event["code"] for event in stack.events(job)]
    assert re.findall(r"^event: (.*)$", streamed.text, re.MULTILINE) == codes
    assert (codes[old_end - 1], codes[-1], codes.count("job.queued")) == ("job.cancelled", "job.succeeded", 2)
    assert _act(stack, "DELETE", path).status_code == 204
    assert [web.get(image["url"]).status_code for image in images] == [404] * 12
    assert _act(stack, "DELETE", path).status_code == 404


def test_an_image_is_had_by_either_way(stack: RunningStack) -> None:
    job = stack.run(params={"prompt": "a fox"})
    (listed,) = stack.artifacts(job)
    path = f"/v1/artifacts/{listed['id']}"
    assert stack.get(path).json()["checksum"] == listed["checksum"]
    moved = stack.get(f"{path}/content")
    assert (moved.status_code, moved.headers["Cache-Control"]) == (307, "no-store")
    streamed = stack.get(f"{path}/content?redirect=false")
    assert web.get(moved.headers["Location"]).content == streamed.content
    assert f"sha256:{hashlib.sha256(streamed.content).hexdigest()}" == listed["checksum"]
    assert streamed.headers["Content-Type"] == "image/png"
    head = _act(stack, "HEAD", f"{path}/content")
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(listed["size_bytes"]))


def test_jobs_that_wait_are_told_their_places(stack: RunningStack) -> None:
    with Client(stack.base_url) as client:
        jobs = [client.submit("a long one", count=40, params={"steps": 50}) for _ in range(5)]
        wait_for(lambda: client.get(jobs[0].id).status == "running", what="the first to run")
        # One runs, one is handed to Ray beside it.
        places = [client.get(job.id).progress.queue_position for job in jobs]
        wait_for(
            lambda: [client.get(job.id).progress.queue_position for job in jobs] == [None, None, 1, 2, 3],
            what="the places",
            instead=lambda: places,
        )
        for job in reversed(jobs):
            client.cancel(job.id)
        assert {client.wait(job.id, timeout=120).status for job in jobs} == {"cancelled"}
