"""The routes over a real Postgres, Valkey and S3, without Ray in front."""

import asyncio
import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from dreamforge.api.app import create_app
from dreamforge.api.state import ApiRules, ApiState
from dreamforge.blobs import Blobs
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.jobs.job import Lane
from dreamforge.queue import TicketQueue, connect
from dreamforge.store.engine import open_async_engine, open_engine
from dreamforge.store.models import NewModel
from tests.integration.factories import a_model

GOOD = {"type": "generate", "params": {"prompt": "a lighthouse at dawn"}}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_engine(database_url, application="tests")
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE jobs, models CASCADE"))
    yield engine
    engine.dispose()


@pytest.fixture
def model(engine: Engine) -> NewModel:
    return a_model(engine, name="tiny")


def _app(database_url: str, redis_url: str, blobs: Blobs, **rules: Any) -> FastAPI:
    values: dict[str, Any] = {
        "redis_outage": "accept",
        "max_body": 1024 * 1024,
        "presign_ttl": 60,
        "heartbeat_seconds": 5.0,
        **rules,
    }
    return create_app(
        ApiState(
            engine=open_async_engine(database_url, application="tests"),
            blobs=blobs,
            redis_url=redis_url,
            rules=ApiRules(**values),
        )
    )


@pytest.fixture
def client(database_url: str, redis_url: str, object_store: ObjectStore, model: NewModel) -> Iterator[TestClient]:
    assert model
    with TestClient(_app(database_url, redis_url, object_store.blobs())) as client:
        yield client


def _error(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert len(response.content) < 4096
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == code
    assert error["request_id"] == response.headers["X-Request-Id"]
    return error


def test_a_job_is_created_and_can_be_read(client: TestClient, model: NewModel, redis_url: str) -> None:
    body = {**GOOD, "count": 2, "priority": "high", "metadata": {"a": "b"}}
    response = client.post("/v1/jobs", json=body, headers={"X-Request-Id": "req-1"})
    assert response.status_code == 201
    job = response.json()
    assert response.headers["Location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert response.headers["X-Request-Id"] == "req-1"
    assert (job["status"], job["count"], job["priority"]) == ("queued", 2, "high")
    assert (job["model_id"], job["metadata"]) == (str(model.id), {"a": "b"})
    assert job["params"]["steps"] == 2, "defaults are resolved and shown"
    assert job["progress"]["items_total"] == 2
    assert client.get(job["links"]["self"]).json() == job
    assert not TicketQueue(redis=connect(redis_url), lane=Lane.GPU).is_empty()


@pytest.mark.parametrize("reference", ["tiny", "tiny@1", "id"])
def test_a_model_is_named_by_id_name_or_version(client: TestClient, model: NewModel, reference: str) -> None:
    name = str(model.id) if reference == "id" else reference
    assert client.post("/v1/jobs", json={**GOOD, "model_id": name}).json()["model_id"] == str(model.id)


def test_an_unknown_model_is_refused_with_those_there_are(client: TestClient) -> None:
    error = _error(client.post("/v1/jobs", json={**GOOD, "model_id": "sdxl-base"}), 422, "unknown_model")
    assert error["message"] == "No model 'sdxl-base'. Installed: tiny."
    assert error["details"] == {"model_id": "sdxl-base"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("installed = false", "model_not_installed"),
        ("enabled = false", "model_disabled"),
        ("capabilities = '{}'", "model_incompatible"),
        ("is_default = false", "unknown_model"),
    ],
)
def test_a_model_that_cannot_be_used_says_why(client: TestClient, engine: Engine, change: str, code: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE models SET {change}"))  # noqa: S608 - the test's own words
    _error(client.post("/v1/jobs", json=GOOD), 422, code)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({**GOOD, "count": 0}, "count"),
        ({**GOOD, "count": 101}, "count"),
        ({**GOOD, "count": True}, "count"),
        ({**GOOD, "count": 1.0}, "count"),
        ({**GOOD, "type": "paint"}, "type"),
        ({**GOOD, "colour": 1}, "colour"),
        ({"type": "generate"}, "params"),
        ({**GOOD, "metadata": {"a": 1}}, "metadata.a"),
        ({**GOOD, "metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({**GOOD, "params": {"prompt": "x", "width": 7}}, "params.width"),
        ({**GOOD, "params": {"prompt": "x", "seed": 2**32}}, "params.seed"),
        ({**GOOD, "params": {"prompt": "nul \x00"}}, "params.prompt"),
        ({**GOOD, "metadata": {"a": "\ud800"}}, "metadata.a"),
        ({**GOOD, "options": {"step_timeout": -1}}, "options.step_timeout"),
    ],
)
def test_bad_values_are_refused_by_path(client: TestClient, body: dict[str, Any], path: str) -> None:
    response = client.post("/v1/jobs", content=json.dumps(body), headers={"Content-Type": "application/json"})
    error = _error(response, 422, "invalid_request")
    assert path in [part["path"] for part in error["details"]["errors"]]


@pytest.mark.parametrize(
    ("content", "media_type", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_request"),
        (b'{"type": NaN}', "application/json", 400, "invalid_request"),
        (b'{"type": 1, "type": 2}', "application/json", 400, "invalid_request"),
        (b'{"a": "\xff"}', "application/json", 400, "invalid_request"),
        (b"[" * 100_000, "application/json", 400, "invalid_request"),
        (b'{"count": ' + b"9" * 5000 + b"}", "application/json", 400, "invalid_request"),
        (b'{"params": ' + b'{"a":' * 30 + b"1" + b"}" * 31, "application/json", 422, "invalid_request"),
        (b'{"params": {"guidance_scale": 1e999}}', "application/json", 422, "invalid_request"),
        (b"[]", "application/json", 422, "invalid_request"),
        (b"", "application/json", 422, "invalid_request"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b'"' + b"x" * 1024 * 1024 + b'"', "application/json", 413, "body_too_large"),
    ],
    ids=["torn", "nan", "twice", "utf-8", "deep", "digits", "nested", "huge", "list", "empty", "text", "large"],
)
def test_bodies_that_are_no_request(
    client: TestClient, content: bytes, media_type: str, status: int, code: str
) -> None:
    _error(client.post("/v1/jobs", content=content, headers={"Content-Type": media_type}), status, code)


def test_unknown_things_are_not_found(client: TestClient) -> None:
    for path in ("/v1/nothing", f"/v1/jobs/{uuid.uuid4()}", "/v1/jobs/17", "/v1/jobs/17/artifacts", "/v1/jobs/x/logs"):
        _error(client.get(path), 404, "not_found")
    _error(client.delete("/v1/jobs"), 405, "method_not_allowed")


def test_a_made_up_cursor_is_refused(client: TestClient) -> None:
    job = client.post("/v1/jobs", json=GOOD).json()
    _error(client.get(f"{job['links']['artifacts']}?cursor=banana"), 400, "invalid_request")
    assert client.get(job["links"]["artifacts"]).json() == {"items": [], "next_cursor": None}


def test_the_log_is_ndjson(client: TestClient) -> None:
    job = client.post("/v1/jobs", json=GOOD).json()
    response = client.get(job["links"]["logs"])
    assert response.headers["Content-Type"].startswith("application/x-ndjson")
    (line,) = [json.loads(line) for line in response.text.splitlines()]
    assert (line["seq"], line["code"], line["payload"]) == (1, "job.queued", {"reason": "submitted"})


def test_models_are_listed_with_their_schema(client: TestClient, model: NewModel) -> None:
    (listed,) = client.get("/v1/models").json()["items"]
    assert (listed["id"], listed["name"], listed["default"]) == (str(model.id), "tiny", True)
    assert listed["parameters_schema"]["properties"]["prompt"]["type"] == "string"


def test_readiness_names_what_is_missing(client: TestClient) -> None:
    readiness = client.get("/readyz")
    assert (readiness.status_code, readiness.json()["status"]) == (200, "degraded")
    checks = readiness.json()["checks"]
    assert {name: check["ok"] for name, check in checks.items()} == {
        "postgres": True,
        "redis": True,
        "s3": True,
        "dispatcher": False,
        "gpu_nodes": False,
    }
    assert checks["dispatcher"]["message"] == "No dispatcher is running."
    assert client.get("/healthz").json() == {"status": "ok"}


def test_without_redis_a_job_is_accepted_or_refused_as_configured(
    database_url: str, object_store: ObjectStore, model: NewModel, engine: Engine
) -> None:
    assert model
    nowhere = "redis://127.0.0.1:1/0"
    with TestClient(_app(database_url, nowhere, object_store.blobs())) as client:
        assert client.post("/v1/jobs", json=GOOD).status_code == 201
    with TestClient(_app(database_url, nowhere, object_store.blobs(), redis_outage="reject")) as client:
        _error(client.post("/v1/jobs", json=GOOD), 503, "queue_unavailable")
        assert client.get("/readyz").status_code == 503
    with engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar() == 1


def test_without_postgres_every_route_says_so(redis_url: str, object_store: ObjectStore) -> None:
    nowhere = "postgresql://u:p@127.0.0.1:1/d"
    with TestClient(_app(nowhere, redis_url, object_store.blobs())) as client:
        for response in (client.post("/v1/jobs", json=GOOD), client.get("/v1/models")):
            _error(response, 503, "database_unavailable")
            assert response.headers["Retry-After"] == "5"
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200


def test_a_bug_shows_no_trace(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        await asyncio.sleep(0)
        raise KeyError("secret")

    app: Any = client.app
    monkeypatch.setattr(app.state.api.models, "list", broken)
    quiet = TestClient(app, raise_server_exceptions=False)
    error = _error(quiet.get("/v1/models"), 500, "internal")
    assert "secret" not in json.dumps(error)
