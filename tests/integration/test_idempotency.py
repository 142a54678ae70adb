"""`Idempotency-Key`: however often and wherever a job is posted, there is one."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from dreamforge.api.app import create_app
from dreamforge.api.state import ApiState
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.store.models import NewModel
from tests.integration.door import GOOD, api_state, assert_envelope, served
from tests.integration.factories import Jobs, a_job, a_model, finish, wait_for_lock
from tests.web import web

_TRIES = 20
KEY = {"Idempotency-Key": "order-17"}


def _post(client: Any, body: dict[str, Any] | None = None, headers: Any = KEY) -> httpx2.Response:
    return client.post("/v1/jobs", json=GOOD if body is None else body, headers=headers)


def _count(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM jobs")).scalar_one()


def _age(engine: Engine, seconds: int) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE jobs SET created_at = created_at - interval '{seconds} seconds'"))  # noqa: S608 - the test's own words


@pytest.fixture
def replicas(database_url: str, redis_url: str, object_store: ObjectStore, engine: Engine) -> Iterator[tuple[str, str]]:
    """Two replicas over one database; their URLs."""
    a_model(engine, name="tiny")
    states = [api_state(database_url, redis_url, object_store.blobs()) for _ in range(2)]
    with served(states[0]) as one, served(states[1]) as other:
        yield one, other


def test_the_same_body_again_is_answered_with_the_same_job(client: TestClient, engine: Engine) -> None:
    first, second = _post(client), _post(client)
    assert (first.status_code, second.status_code) == (201, 201)
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert second.json() == first.json()
    assert second.headers["Location"] == first.headers["Location"]
    assert _count(engine) == 1


def test_a_replay_tells_the_job_as_it_is_now(client: TestClient, engine: Engine, object_store: ObjectStore) -> None:
    job = _post(client).json()
    finish(engine, object_store.blobs(), count=1)
    again = _post(client).json()
    assert (again["id"], again["status"], again["progress"]["items_done"]) == (job["id"], "succeeded", 1)


def test_the_same_body_is_the_same_in_any_order_and_spacing(client: TestClient, engine: Engine) -> None:
    headers = {**KEY, "Content-Type": "application/json"}
    one = client.post("/v1/jobs", content='{"type":"generate","params":{"prompt":"a","seed":1}}', headers=headers)
    other = client.post(
        "/v1/jobs", content='{"params": {"seed": 1, "prompt": "\\u0061"},\n "type": "generate"}', headers=headers
    )
    assert other.json()["id"] == one.json()["id"]
    assert _count(engine) == 1


@pytest.mark.parametrize(
    "other",
    [
        {**GOOD, "count": 2},
        {**GOOD, "count": 1},
        {**GOOD, "metadata": {}},
        {"type": "generate", "params": {"prompt": "another"}},
        {**GOOD, "model_id": "gone"},
    ],
    ids=["count", "a default that is named", "an empty field", "prompt", "a model that is not there"],
)
def test_another_body_is_refused_before_its_model_is_looked_at(
    client: TestClient, engine: Engine, other: dict[str, Any]
) -> None:
    job = _post(client).json()
    error = assert_envelope(_post(client, other), 422, "idempotency_key_reused")
    assert (error["job_id"], error["details"]) == (job["id"], {})
    assert _count(engine) == 1


def test_only_hashes_are_stored(client: TestClient, engine: Engine) -> None:
    _post(client)
    with engine.connect() as connection:
        row = connection.execute(text("SELECT to_jsonb(jobs)::text, idempotency_key_hash FROM jobs")).one()
    assert "order-17" not in row[0]
    assert len(row[1]) == 64


@pytest.mark.parametrize(
    "headers",
    [
        [("Idempotency-Key", "")],
        [("Idempotency-Key", "a" * 256)],
        [("Idempotency-Key", "a" * 300)],
        [("Idempotency-Key", "a b")],
        [("Idempotency-Key", "tab\there")],
        [("Idempotency-Key", b"caf\xc3\xa9")],
        [("Idempotency-Key", b"caf\xe9")],
        [("Idempotency-Key", b"del\x7f")],
        [("Idempotency-Key", "one"), ("Idempotency-Key", "two")],
        [("Idempotency-Key", "one"), ("Idempotency-Key", "one")],
    ],
    ids=["empty", "256", "300", "space", "tab", "utf-8", "latin-1", "delete", "two", "twice"],
)
def test_what_is_no_key_is_refused_and_makes_no_job(client: TestClient, engine: Engine, headers: Any) -> None:
    raw = [(name, value.encode() if isinstance(value, str) else value) for name, value in headers]
    assert_envelope(_post(client, headers=raw), 400, "invalid_request")
    assert _count(engine) == 0


@pytest.mark.parametrize("key", ["a", "!" * 255, '"8e03978e-40d5"', "~"])
def test_visible_ascii_is_a_key(client: TestClient, key: str) -> None:
    job = _post(client, headers={"Idempotency-Key": key}).json()
    again = _post(client, headers={"idempotency-key": key})
    assert (again.json()["id"], again.headers["Idempotency-Replayed"]) == (job["id"], "true")


def test_a_refused_request_does_not_use_its_key_up(client: TestClient, engine: Engine) -> None:
    assert_envelope(_post(client, {**GOOD, "model_id": "gone"}), 422, "unknown_model")
    assert_envelope(_post(client, {**GOOD, "params": {"prompt": "x", "width": 7}}), 422, "invalid_request")
    answer = _post(client)
    assert answer.status_code == 201
    assert "Idempotency-Replayed" not in answer.headers
    assert _count(engine) == 1


def test_keys_are_each_user_s_own(client: TestClient, engine: Engine) -> None:
    _post(client)
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET user_id = 'somebody'"))
    assert "Idempotency-Replayed" not in _post(client).headers
    assert _count(engine) == 2


def test_a_replay_needs_neither_its_model_nor_redis(
    client: TestClient, engine: Engine, database_url: str, object_store: ObjectStore
) -> None:
    job = _post(client).json()
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM models"))
    nowhere = api_state(database_url, "redis://127.0.0.1:1/0", object_store.blobs(), redis_outage="reject")
    with TestClient(create_app(nowhere)) as without:
        again = _post(without)
        assert (again.status_code, again.json()["id"]) == (201, job["id"])
        assert_envelope(_post(without, headers={"Idempotency-Key": "new"}), 503, "queue_unavailable")


def test_a_key_is_good_for_its_time_and_then_makes_a_new_job(
    database_url: str, redis_url: str, object_store: ObjectStore, model: NewModel, engine: Engine
) -> None:
    assert model
    state = api_state(database_url, redis_url, object_store.blobs(), idempotency_ttl=100)
    with TestClient(create_app(state)) as client:
        old = _post(client).json()
        _age(engine, 90)
        assert _post(client).json()["id"] == old["id"]
        _age(engine, 20)
        other = {**GOOD, "count": 2}
        new = _post(client, other)
        assert (new.status_code, "Idempotency-Replayed" in new.headers) == (201, False)
        assert new.json()["id"] != old["id"]
        assert _post(client, other).json()["id"] == new.json()["id"]
        assert client.get(old["links"]["self"]).status_code == 200, "the old job only lost its key"
    with engine.connect() as connection:
        kept = connection.execute(text("SELECT count(*) FROM jobs WHERE idempotency_key_hash IS NOT NULL"))
        assert kept.scalar_one() == 1


def test_a_key_whose_time_is_up_makes_one_new_job_however_many_use_it_at_once(
    database_url: str, redis_url: str, object_store: ObjectStore, model: NewModel, engine: Engine
) -> None:
    assert model
    state = api_state(database_url, redis_url, object_store.blobs(), idempotency_ttl=100)
    together = threading.Barrier(10)

    def post(url: str) -> httpx2.Response:
        together.wait()
        answers = (web.post(f"{url}/v1/jobs", json=GOOD, headers=KEY, timeout=60) for _ in range(_TRIES))
        return next(answer for answer in answers if answer.status_code != 503)

    with served(state) as url, ThreadPoolExecutor(10) as pool:
        old = web.post(f"{url}/v1/jobs", json=GOOD, headers=KEY).json()
        _age(engine, 200)
        answers = list(pool.map(post, [url] * 10))
    assert {answer.status_code for answer in answers} == {201}, [answer.text for answer in answers][:1]
    assert len({answer.text for answer in answers}) == 1, "ten equal answers"
    assert answers[0].json()["id"] != old["id"]
    # All of them, when the first was answered by 503.
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) in {9, 10}
    assert _count(engine) == 2


def test_a_key_whose_time_is_up_is_not_used_up_by_a_refusal(
    database_url: str, redis_url: str, object_store: ObjectStore, model: NewModel, engine: Engine
) -> None:
    assert model
    state = api_state(database_url, redis_url, object_store.blobs(), idempotency_ttl=100)
    with TestClient(create_app(state)) as client:
        _post(client)
        _age(engine, 200)
        assert_envelope(_post(client, {**GOOD, "model_id": "gone"}), 422, "unknown_model")
        assert _post(client).status_code == 201
    assert _count(engine) == 2


def test_a_deleted_job_takes_its_key_with_it(client: TestClient) -> None:
    job = _post(client).json()
    client.post(job["links"]["cancel"])
    assert client.delete(job["links"]["self"]).status_code == 204
    again = _post(client)
    assert (again.status_code, "Idempotency-Replayed" in again.headers) == (201, False)
    assert again.json()["id"] != job["id"]


def test_fifty_at_once_over_two_replicas_make_one_job(replicas: tuple[str, str], engine: Engine) -> None:
    together = threading.Barrier(50)

    def post(number: int) -> httpx2.Response:
        together.wait()
        answers = (
            web.post(f"{replicas[number % 2]}/v1/jobs", json=GOOD, headers=KEY, timeout=60) for _ in range(_TRIES)
        )
        # A replica with too much to do says so; with a key it is safe to ask again.
        return next(answer for answer in answers if answer.status_code != 503)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(post, range(50)))
    assert {answer.status_code for answer in answers} == {201}, [answer.text for answer in answers][:1]
    assert len({answer.text for answer in answers}) == 1, "fifty equal answers"
    # All of them, when the first was answered by 503.
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) in {49, 50}
    assert _count(engine) == 1


def test_a_first_use_in_flight_is_waited_for(client: TestClient, engine: Engine, state: ApiState) -> None:
    """The look-up finds nothing yet; the constraint does."""
    with ThreadPoolExecutor(1) as pool, engine.connect() as first:
        job = _post(client).json()
        with engine.begin() as connection:
            stored = connection.execute(text("SELECT idempotency_key_hash, request_fingerprint FROM jobs")).one()
            connection.execute(text("UPDATE jobs SET idempotency_key_hash = NULL"))
        values = {"key": stored[0], "fingerprint": stored[1], "id": job["id"]}
        first.execute(
            text("UPDATE jobs SET idempotency_key_hash = :key, request_fingerprint = :fingerprint WHERE id = :id"),
            values,
        )
        second = pool.submit(_post, client)
        wait_for_lock(engine)
        first.commit()
        answer = second.result()
    assert (answer.json()["id"], answer.headers["Idempotency-Replayed"]) == (job["id"], "true")
    assert _count(engine) == 1
    assert state


def test_a_first_use_in_flight_that_fails_leaves_the_key_to_the_next(client: TestClient, engine: Engine) -> None:
    job = _post(client).json()
    with engine.begin() as connection:
        key = connection.execute(text("SELECT idempotency_key_hash FROM jobs")).scalar_one()
        connection.execute(text("UPDATE jobs SET idempotency_key_hash = NULL"))
    with ThreadPoolExecutor(1) as pool, engine.connect() as first:
        first.execute(text("UPDATE jobs SET idempotency_key_hash = :key"), {"key": key})
        second = pool.submit(_post, client)
        wait_for_lock(engine)
        first.rollback()
        answer = second.result()
    assert (answer.status_code, "Idempotency-Replayed" in answer.headers) == (201, False)
    assert answer.json()["id"] != job["id"]


def test_without_a_key_every_post_makes_a_job(client: TestClient, engine: Engine, jobs: Jobs, model: NewModel) -> None:
    assert len({_post(client, headers={}).json()["id"] for _ in range(3)}) == 3
    jobs.submit(a_job(model))
    assert _count(engine) == 4
