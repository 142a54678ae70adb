"""`DELETE /v1/jobs/{id}`: the rows go, then the objects, whatever the object store does."""

import logging
import uuid

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from dreamforge.api.app import create_app
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.jobs.job import JobStatus
from dreamforge.store.endings import EndingStore
from dreamforge.store.models import NewModel
from tests.integration.door import GOOD, api_state, assert_envelope, blobs_behind
from tests.integration.factories import claimed, draw, finish
from tests.relay import Relay
from tests.service import wait_for
from tests.web import web

_TABLES = ("jobs", "steps", "items", "events", "artifacts")


def _rows(engine: Engine) -> dict[str, int]:
    with engine.connect() as connection:
        return {
            table: connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()  # noqa: S608 - the test's own words
            for table in _TABLES
        }


def test_rows_objects_and_urls_of_the_job_go_and_no_others(
    client: TestClient, engine: Engine, object_store: ObjectStore
) -> None:
    kept, gone = (client.post("/v1/jobs", json={**GOOD, "count": 2}).json() for _ in range(2))
    for _ in range(2):
        finish(engine, object_store.blobs(), count=2)
    urls = {
        job["id"]: [artifact["url"] for artifact in client.get(job["links"]["artifacts"]).json()["items"]]
        for job in (kept, gone)
    }
    artifact = client.get(gone["links"]["artifacts"]).json()["items"][0]
    both = _rows(engine)
    answer = client.delete(gone["links"]["self"])
    assert (answer.status_code, answer.content) == (204, b"")
    assert {table: count * 2 for table, count in _rows(engine).items()} == both
    assert [web.get(url).status_code for url in urls[gone["id"]]] == [404, 404]
    assert [web.get(url).status_code for url in urls[kept["id"]]] == [200, 200]
    for path in (*gone["links"].values(), f"/v1/artifacts/{artifact['id']}", f"/v1/artifacts/{artifact['id']}/content"):
        if path != gone["links"]["cancel"]:
            assert_envelope(client.get(path), 404, "not_found")
    assert_envelope(client.delete(gone["links"]["self"]), 404, "not_found")
    assert [job["id"] for job in client.get("/v1/jobs").json()["items"]] == [kept["id"]]


@pytest.mark.parametrize("status", list(JobStatus))
def test_only_a_job_that_is_over_can_be_deleted(client: TestClient, engine: Engine, status: JobStatus) -> None:
    job = client.post("/v1/jobs", json=GOOD).json()
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET status = :status"), {"status": status})
    before = _rows(engine)
    answer = client.delete(job["links"]["self"])
    if status.is_terminal:
        assert answer.status_code == 204
        assert set(_rows(engine).values()) == {0}
    else:
        error = assert_envelope(answer, 409, "conflict")
        assert (error["job_id"], error["details"]) == (job["id"], {"status": status})
        assert _rows(engine) == before


def test_a_running_job_is_deleted_once_it_was_cancelled_and_has_stopped(
    client: TestClient, engine: Engine, object_store: ObjectStore
) -> None:
    job = client.post("/v1/jobs", json={**GOOD, "count": 2}).json()
    fence = claimed(engine).fence
    draw(engine, object_store.blobs(), fence, index=0, data=b"first")
    assert_envelope(client.delete(job["links"]["self"]), 409, "conflict")
    assert client.post(job["links"]["cancel"]).json()["status"] == "cancelling"
    assert_envelope(client.delete(job["links"]["self"]), 409, "conflict")
    EndingStore(engine=engine).finalize(fence)
    wait_for(lambda: client.get(job["links"]["self"]).json()["status"] in {"cancelled", "failed"}, what="the end")
    assert client.delete(job["links"]["self"]).status_code == 204


def test_what_is_no_job_cannot_be_deleted(client: TestClient, engine: Engine) -> None:
    job = client.post("/v1/jobs", json=GOOD).json()
    client.post(job["links"]["cancel"])
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET user_id = 'somebody'"))
    for id in (str(uuid.uuid4()), "17", job["id"]):
        assert_envelope(client.delete(f"/v1/jobs/{id}"), 404, "not_found")
    assert _rows(engine)["jobs"] == 1


@pytest.mark.parametrize("way", ["refusing", "frozen"])
def test_objects_that_cannot_be_removed_now_are_left_and_told(
    database_url: str, redis_url: str, object_store: ObjectStore, model: NewModel, engine: Engine,
    caplog: pytest.LogCaptureFixture, way: str,
) -> None:  # fmt: skip
    assert model
    with Relay.before(object_store.endpoint) as relay:
        blobs = blobs_behind(relay, object_store, read_timeout=1)
        with TestClient(create_app(api_state(database_url, redis_url, blobs))) as client:
            job = client.post("/v1/jobs", json={**GOOD, "count": 2}).json()
            drawn = finish(engine, object_store.blobs(), count=2)
            with getattr(relay, way)(), caplog.at_level(logging.WARNING, logger="dreamforge.api.routes.jobs"):
                assert client.delete(job["links"]["self"]).status_code == 204
    assert set(_rows(engine).values()) == {0}
    (told,) = [record for record in caplog.records if record.name == "dreamforge.api.routes.jobs"]
    assert (told.__dict__["job_id"], told.__dict__["objects"]) == (job["id"], 2)
    # Still there, without a row, which the sweep goes by. What a frozen store was asked for it does when it thaws.
    assert _read(object_store, drawn[1].s3_key) == b"image 1"


def test_an_object_that_is_gone_already_is_no_trouble(
    client: TestClient, engine: Engine, object_store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    job = client.post("/v1/jobs", json={**GOOD, "count": 2}).json()
    first, second = finish(engine, object_store.blobs(), count=2)
    object_store.blobs().remove([first.s3_key])
    with caplog.at_level(logging.WARNING, logger="dreamforge.api.routes.jobs"):
        assert client.delete(job["links"]["self"]).status_code == 204
    assert not [record for record in caplog.records if record.name == "dreamforge.api.routes.jobs"]
    url = object_store.blobs().presign(second.s3_key, ttl=60, content_type="image/png", filename="x.png")
    assert web.get(url).status_code == 404


def _read(store: ObjectStore, key: str) -> bytes:
    blob = store.blobs().open(key)
    try:
        return blob.read(100)
    finally:
        blob.close()
