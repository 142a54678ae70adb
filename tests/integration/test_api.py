"""The routes over a real Postgres, Valkey and S3, without Ray in front."""

import json

import httpx2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from dreamforge.embedded.object_store import ObjectStore
from dreamforge.jobs.job import Lane
from dreamforge.queue import TicketQueue, connect
from dreamforge.store.models import NewModel
from tests.integration.door import GOOD, assert_envelope, make_app
from tests.integration.factories import a_model


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


@pytest.mark.parametrize(("change", "code"), [("installed", "model_not_installed"), ("enabled", "model_disabled")])
def test_a_name_is_its_newest_version_that_can_be_used(
    client: TestClient, engine: Engine, model: NewModel, change: str, code: str
) -> None:
    newest = a_model(engine, name="tiny", version="2")

    def drawn_with(reference: str) -> httpx2.Response:
        return client.post("/v1/jobs", json={**GOOD, "model_id": reference})

    assert drawn_with("tiny").json()["model_id"] == str(newest.id)
    with engine.begin() as connection:
        switch_off = text(f"UPDATE models SET {change} = false WHERE id = :id")  # noqa: S608 - the test's own words
        connection.execute(switch_off, {"id": newest.id})
    assert drawn_with("tiny").json()["model_id"] == str(model.id)
    for reference in ("tiny@2", str(newest.id)):
        assert_envelope(drawn_with(reference), 422, code)
    with engine.begin() as connection:
        connection.execute(switch_off, {"id": model.id})
    assert_envelope(drawn_with("tiny"), 422, code)


def test_an_unknown_model_is_refused_with_those_there_are(client: TestClient) -> None:
    error = assert_envelope(client.post("/v1/jobs", json={**GOOD, "model_id": "sdxl-base"}), 422, "unknown_model")
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
    assert_envelope(client.post("/v1/jobs", json=GOOD), 422, code)


def test_the_log_is_ndjson(client: TestClient) -> None:
    job = client.post("/v1/jobs", json=GOOD).json()
    response = client.get(job["links"]["logs"])
    assert response.headers["Content-Type"].startswith("application/x-ndjson")
    (line,) = [json.loads(line) for line in response.text.splitlines()]
    assert (line["seq"], line["code"], line["payload"]) == (1, "job.queued", {"reason": "submitted"})


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
    with TestClient(make_app(database_url, nowhere, object_store.blobs())) as client:
        assert client.post("/v1/jobs", json=GOOD).status_code == 201
    with TestClient(make_app(database_url, nowhere, object_store.blobs(), redis_outage="reject")) as client:
        assert_envelope(client.post("/v1/jobs", json=GOOD), 503, "queue_unavailable")
        assert client.get("/readyz").status_code == 503
    with engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar() == 1


def test_a_database_without_tables_is_not_ready(
    empty_database_url: str, redis_url: str, object_store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    with TestClient(make_app(empty_database_url, redis_url, object_store.blobs())) as client:
        answer = client.get("/readyz")
        figures = client.get("/metrics")
        error = assert_envelope(client.post("/v1/jobs", json=GOOD), 503, "database_unavailable")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    for name in ("postgres", "dispatcher", "gpu_nodes"):
        check = answer.json()["checks"][name]
        assert (check["ok"], "dreamforge prepare" in check["message"]) == (False, True)
    assert (figures.status_code, "dreamforge_database_up 0.0" in figures.text) == (200, True)
    assert "dreamforge prepare" in error["message"]
    assert any("jobs" in record.getMessage() for record in caplog.records if record.levelname == "ERROR")


def test_without_postgres_every_route_says_so(redis_url: str, object_store: ObjectStore) -> None:
    nowhere = "postgresql://u:p@127.0.0.1:1/d"
    with TestClient(make_app(nowhere, redis_url, object_store.blobs())) as client:
        for response in (client.post("/v1/jobs", json=GOOD), client.get("/v1/models")):
            assert_envelope(response, 503, "database_unavailable")
            assert response.headers["Retry-After"] == "5"
        assert client.get("/readyz").status_code == client.head("/readyz").status_code == 503
        assert client.get("/healthz").status_code == client.head("/healthz").status_code == 200
