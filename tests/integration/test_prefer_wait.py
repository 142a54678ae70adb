"""`Prefer: wait`: the answer to a post is held until the job is over, or the time is."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event, text

from dreamforge.api.state import ApiState
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.store.models import NewModel
from tests.integration.door import GOOD, api_state, assert_envelope, served
from tests.integration.factories import finish
from tests.relay import Relay
from tests.service import wait_for
from tests.web import web


@pytest.fixture
def url(state: ApiState, model: NewModel) -> Iterator[str]:
    assert model
    with served(state) as url:
        yield url


def _posted(url: str, prefer: str, **headers: str) -> httpx2.Response:
    return web.post(f"{url}/v1/jobs", json=GOOD, headers={"Prefer": prefer, **headers}, timeout=90)


def _job_is_there(engine: Engine) -> bool:
    with engine.connect() as connection:
        return bool(connection.execute(text("SELECT count(*) FROM jobs")).scalar_one())


def test_the_answer_comes_when_the_job_is_over(url: str, engine: Engine, object_store: ObjectStore) -> None:
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        answer = pool.submit(_posted, url, "wait=60")
        wait_for(lambda: _job_is_there(engine), what="the job")
        finish(engine, object_store.blobs(), count=1)
        response = answer.result()
    assert time.monotonic() - began < 55, "it did not wait for its time to pass"
    job = response.json()
    assert (response.status_code, job["status"], job["progress"]["items_done"]) == (201, "succeeded", 1)
    assert response.headers["Preference-Applied"] == "wait=60"
    assert response.headers["Location"] == job["links"]["self"]


def test_when_the_time_is_up_the_job_is_told_as_it_is(url: str) -> None:
    began = time.monotonic()
    response = _posted(url, "wait=1")
    assert time.monotonic() - began >= 1
    assert (response.status_code, response.json()["status"]) == (201, "queued")
    assert response.headers["Preference-Applied"] == "wait=1"


def test_no_time_is_no_wait_and_nothing_asked_is_nothing_applied(client: TestClient) -> None:
    for headers, applied in (({"Prefer": "wait=0"}, "wait=0"), ({"Prefer": "respond-async"}, None), ({}, None)):
        response = client.post("/v1/jobs", json=GOOD, headers=headers)
        assert (response.status_code, response.headers.get("Preference-Applied")) == (201, applied)


def test_more_than_a_minute_is_a_minute(client: TestClient) -> None:
    job = client.post("/v1/jobs", json=GOOD, headers={"Idempotency-Key": "k"}).json()
    client.post(job["links"]["cancel"])
    response = client.post("/v1/jobs", json=GOOD, headers={"Idempotency-Key": "k", "Prefer": "wait=3600"})
    assert response.headers["Preference-Applied"] == "wait=60"


@pytest.mark.parametrize("prefer", ["wait=soon", "wait=-1", 'wait="', "wait=1.5", ";"])
def test_a_malformed_preference_is_refused_and_makes_no_job(client: TestClient, engine: Engine, prefer: str) -> None:
    assert_envelope(client.post("/v1/jobs", json=GOOD, headers={"Prefer": prefer}), 400, "invalid_request")
    assert not _job_is_there(engine)


def test_a_replay_waits_too(url: str, engine: Engine, object_store: ObjectStore) -> None:
    key = {"Idempotency-Key": "order-17"}
    job = web.post(f"{url}/v1/jobs", json=GOOD, headers=key).json()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(_posted, url, "wait=60", **key)
        finish(engine, object_store.blobs(), count=1)
        response = answer.result()
    assert (response.json()["id"], response.json()["status"]) == (job["id"], "succeeded")
    assert response.headers["Idempotency-Replayed"] == "true"


def test_a_job_that_is_deleted_meanwhile_ends_the_wait(url: str, engine: Engine) -> None:
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        answer = pool.submit(_posted, url, "wait=60")
        wait_for(lambda: _job_is_there(engine), what="the job")
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM jobs"))
        assert answer.result().status_code == 201
    assert time.monotonic() - began < 55


def test_many_wait_without_holding_a_connection(
    database_url: str, redis_url: str, object_store: ObjectStore, model: NewModel, engine: Engine
) -> None:
    assert model
    state = api_state(database_url, redis_url, object_store.blobs(), pool_size=1)
    with served(state) as url, ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(_posted, url, "wait=60") for _ in range(20)]

        def are_there() -> bool:
            with engine.connect() as connection:
                return connection.execute(text("SELECT count(*) FROM jobs")).scalar_one() == 20

        wait_for(are_there, what="twenty jobs")
        # One connection, and it is free.
        jobs = web.get(f"{url}/v1/jobs", timeout=30).json()["items"]
        assert len(jobs) == 20
        for job in jobs:
            web.post(f"{url}{job['links']['cancel']}", timeout=30)
        assert {answer.result().json()["status"] for answer in answers} == {"cancelled"}


def test_a_client_that_leaves_is_waited_for_no_more(url: str, state: ApiState, engine: Engine) -> None:
    looks: list[float] = []

    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if "jobs.status" in statement and "jobs.params_json" not in statement:
            looks.append(time.monotonic())

    event.listen(state.engine.sync_engine, "before_cursor_execute", note)
    with pytest.raises(httpx2.ReadTimeout):
        web.post(f"{url}/v1/jobs", json=GOOD, headers={"Prefer": "wait=60"}, timeout=2)
    assert _job_is_there(engine)
    assert looks
    wait_for(lambda: time.monotonic() - looks[-1] > 5, seconds=30, what="the last look")


def test_looking_is_modest(url: str, state: ApiState) -> None:
    looks: list[str] = []

    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        looks.append(statement)

    event.listen(state.engine.sync_engine, "before_cursor_execute", note)
    _posted(url, "wait=0")
    without = len(looks)
    looks.clear()
    _posted(url, "wait=5")
    assert len(looks) - without <= 20


def test_a_database_that_goes_away_while_a_job_is_waited_for_loses_nothing(
    database_url: str, redis_url: str, object_store: ObjectStore, model: NewModel, engine: Engine
) -> None:
    assert model
    with Relay.before(database_url) as relay:
        state = api_state(relay.moved(database_url), redis_url, object_store.blobs())
        with served(state) as url, ThreadPoolExecutor(1) as pool:
            answer = pool.submit(_posted, url, "wait=4")
            wait_for(lambda: _job_is_there(engine), what="the job")
            with relay.refusing():
                response = answer.result()
            assert (response.status_code, response.json()["status"]) == (201, "queued")


def test_a_replica_that_leaves_answers_with_the_job_so_far(url: str, state: ApiState, engine: Engine) -> None:
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        answer = pool.submit(_posted, url, "wait=60")
        wait_for(lambda: _job_is_there(engine), what="the job")
        state.leave()
        response = answer.result()
    assert time.monotonic() - began < 55
    assert (response.status_code, response.json()["status"]) == (201, "queued")
    assert _posted(url, "wait=60").json()["status"] == "queued", "nor does anybody wait from now on"


def test_the_test_client_s_waits_end(client: TestClient, engine: Engine, object_store: ObjectStore) -> None:
    """Without a server around the application nobody leaves, and nothing hangs."""
    drawn = threading.Thread(
        target=lambda: (wait_for(lambda: _job_is_there(engine)), finish(engine, object_store.blobs(), count=1))
    )
    drawn.start()
    assert client.post("/v1/jobs", json=GOOD, headers={"Prefer": "wait"}).json()["status"] == "succeeded"
    drawn.join()
