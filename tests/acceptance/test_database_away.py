"""The whole service while its database is frozen: what its clients are told, and that nobody has to be restarted."""

import contextlib
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import psutil
import pytest

from tests.running_stack import RunningStack, wait_for

pytestmark = pytest.mark.timeout(300)

_SOON = 3.0
"""Seconds."""


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack whose database may be frozen."""
    with RunningStack(data_dir=tmp_path_factory.mktemp("frozen")).ready() as stack:
        yield stack


def _postgres(stack: RunningStack) -> list[psutil.Process]:
    """The server first, then its own processes."""
    server = psutil.Process(stack.state()["parts"]["postgres"]["pid"])
    return [server, *server.children(recursive=True)]


@contextlib.contextmanager
def _frozen_postgres(stack: RunningStack) -> Generator[None]:
    """In the block connections are taken by the kernel, and nothing is answered."""
    server, *_ = _postgres(stack)
    # From here on it makes no more of them.
    server.suspend()
    try:
        for process in _postgres(stack)[1:]:
            process.suspend()
        yield
    finally:
        for process in reversed(_postgres(stack)):
            process.resume()


def _requests(job: dict[str, Any], artifact: dict[str, Any]) -> list[tuple[str, str]]:
    """One to every route that needs the database."""
    path = job["links"]["self"]
    content = f"/v1/artifacts/{artifact['id']}/content"
    return [
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs"),
        ("GET", path),
        ("POST", f"{path}/cancel"),
        ("POST", f"{path}/retry"),
        ("DELETE", path),
        ("GET", f"{path}/artifacts"),
        ("GET", f"{path}/logs"),
        ("GET", f"{path}/logs?follow=true"),
        ("GET", f"{path}/progress"),
        ("GET", f"{path}/progress/stream"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/sdxl-tiny"),
        ("GET", f"/v1/artifacts/{artifact['id']}"),
        ("GET", content),
        ("GET", f"{content}?redirect=false"),
        ("HEAD", content),
    ]


def _timed(stack: RunningStack, method: str, path: str) -> tuple[httpx2.Response, float]:
    body = {"type": "generate", "params": {"prompt": "too early"}} if (method, path) == ("POST", "/v1/jobs") else None
    began = time.monotonic()
    response = stack.ask(method, path, json=body, timeout=30)
    return response, time.monotonic() - began


def _assert_refused(stack: RunningStack, requests: list[tuple[str, str]]) -> None:
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(lambda request: _timed(stack, *request), requests))
    for request, (response, seconds) in zip(requests, answers, strict=True):
        assert response.status_code == 503, (request, response.text)
        assert int(response.headers["Retry-After"]) > 0, request
        if request[0] != "HEAD":
            assert response.json()["error"]["code"] == "database_unavailable", request
        assert seconds < _SOON, request


def test_a_frozen_database_is_told_by_every_route_and_outlasted(own_stack: RunningStack) -> None:
    drawn = own_stack.run(params={"prompt": "drawn before", "seed": 1})
    (artifact,) = own_stack.artifacts(drawn)
    running = own_stack.post(count=8, params={"prompt": "drawn meanwhile", "steps": 20, "seed": 0}).json()
    queued = [own_stack.post(params={"prompt": f"drawn afterwards {number}"}).json() for number in range(2)]
    wait_for(lambda: own_stack.artifacts(running), what="the first image")
    postgres = [process.pid for process in _postgres(own_stack)[:1]]
    replicas = {process.pid for process in own_stack.replicas("")}
    with _frozen_postgres(own_stack):
        # Twice: over connections that were open, and over none.
        for _ in range(2):
            _assert_refused(own_stack, _requests(drawn, artifact))
        assert own_stack.get("/healthz").status_code == 200
        _assert_not_ready(own_stack)
        metrics = own_stack.get("/metrics")
        assert metrics.status_code == 200
        assert "\ndreamforge_database_up 0.0\n" in metrics.text
    wait_for(lambda: own_stack.get("/readyz").json()["status"] == "ok", what="readiness")
    assert own_stack.get(drawn["links"]["self"]).json() == drawn, "nothing that was refused was done"
    assert own_stack.wait_for_job(running["id"])["status"] == "succeeded"
    assert [artifact["seed"] for artifact in own_stack.artifacts(running)] == list(range(8))
    assert {own_stack.wait_for_job(job["id"])["status"] for job in queued} == {"succeeded"}
    assert own_stack.run(params={"prompt": "drawn at last"})["status"] == "succeeded"
    # One at a time, and over both replicas.
    assert {own_stack.get("/v1/models").status_code for _ in range(20)} == {200}
    assert [process.pid for process in _postgres(own_stack)[:1]] == postgres
    assert {process.pid for process in own_stack.replicas("")} == replicas
    assert "has ended" not in own_stack.said()


def _assert_not_ready(stack: RunningStack) -> None:
    readiness = stack.get("/readyz")
    assert (readiness.status_code, readiness.json()["status"]) == (503, "unavailable")
    checks = readiness.json()["checks"]
    assert (checks["postgres"]["ok"], checks["postgres"]["required"]) == (False, True)
    assert checks["postgres"]["message"]
    assert (checks["redis"]["ok"], checks["s3"]["ok"]) == (True, True)
