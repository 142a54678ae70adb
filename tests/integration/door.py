"""The application over real servers, in this process: for a test client, or on a port of its own."""

import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI

from dreamforge.api.app import create_app
from dreamforge.api.errors import MOST_BYTES
from dreamforge.api.state import ApiRules, ApiState
from dreamforge.blobs import Blobs
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.store.engine import open_async_engine
from tests.relay import Relay
from tests.service import wait_for
from tests.web import web

GOOD: dict[str, Any] = {"type": "generate", "params": {"prompt": "a lighthouse at dawn"}}
JSON = {"Content-Type": "application/json"}


def api_state(database_url: str, redis_url: str, blobs: Blobs, *, pool_size: int = 10, **rules: Any) -> ApiState:
    """What one replica's routes work with; ``rules`` replace those of the tests."""
    values: dict[str, Any] = {
        "redis_outage": "accept",
        "max_body": 1024 * 1024,
        "presign_ttl": 60,
        "heartbeat_seconds": 5.0,
        **rules,
    }
    engine = open_async_engine(database_url, application="tests", pool_size=pool_size)
    return ApiState(engine=engine, blobs=blobs, redis_url=redis_url, rules=ApiRules(**values))


def make_app(database_url: str, redis_url: str, blobs: Blobs, **rules: Any) -> FastAPI:
    """One replica, without a server around it."""
    return create_app(api_state(database_url, redis_url, blobs, **rules))


def blobs_behind(relay: Relay, store: ObjectStore, **times: float) -> Blobs:
    """The store's bucket by way of a relay; presigned URLs lead to the store itself."""
    return Blobs(replace(store.settings(), endpoint=f"http://127.0.0.1:{relay.port}"), **times)


def assert_envelope(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The error inside, which has this status and code."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert len(response.content) < MOST_BYTES
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"code", "message", "details", "job_id", "request_id"}
    assert error["code"] == code
    assert error["request_id"] == response.headers["X-Request-Id"]
    return error


@contextmanager
def served(state: ApiState) -> Generator[str]:
    """One replica on a port of its own, spoken to over HTTP. Its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(state), log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            wait_for(lambda: server.started, what="the application's start")
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            # FastAPI builds the routes when it is first asked, with warnings switched off: for all threads, until the
            # first of them is done. Two replicas must not do that side by side where warnings are errors.
            web.get(f"{url}/healthz")
            yield url
        finally:
            server.should_exit = True
            thread.join(timeout=30)
