"""A download that is asked for over HTTP: a job like any other, that makes no image and needs no GPU."""

import uuid
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from dreamforge.api.app import create_app
from dreamforge.api.state import ApiState
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.errors import LeaseLost
from dreamforge.jobs.events import ItemFinished, ItemProgress, ItemStarted, ModelInstalled, StepStarted
from dreamforge.jobs.job import Lane
from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.jobs.progress import DownloadStage
from dreamforge.queue import QUEUE_NAMES, connect
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.claims import Claim, ClaimStore
from dreamforge.store.endings import EndingStore
from dreamforge.store.rescues import RescueStore
from tests.integration.door import GOOD, api_state, assert_envelope

PATH = "/v1/admin/models"
BODY: dict[str, Any] = {"source": "civitai:277058@1920523"}
INSTALLED = ModelInstalled(model_id=str(uuid.uuid4()), name="juggernaut", version="11", is_new=True)


def _post(
    client: TestClient, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
) -> httpx2.Response:
    return client.post(PATH, json=body or BODY, headers=headers or {})


def _asked(client: TestClient, **body: Any) -> dict[str, Any]:
    response = _post(client, {**BODY, **body})
    assert response.status_code == 201, response.text
    return response.json()


def _claimed(engine: Engine, *, lease_seconds: float = 30.0) -> Claim:
    claim = ClaimStore(engine=engine).claim(lane=Lane.IO, lease_token=uuid.uuid4(), lease_seconds=lease_seconds)
    assert claim is not None
    return claim


def _begun(engine: Engine, claim: Claim) -> AttemptStore:
    attempt = AttemptStore(engine=engine, fence=claim.fence)
    attempt.start(StepStarted(step="download", attempt=claim.fence.attempt, node="here"), metadata={})
    attempt.begin_item(ItemStarted(item_index=0, seed=None), stage=DownloadStage.RESOLVE)
    return attempt


def _installed(attempt: AttemptStore) -> None:
    attempt.install(INSTALLED, ItemFinished(item_index=0, seed=None, timings={"download": 1.5}))


def _events(client: TestClient, job: dict[str, Any]) -> list[str]:
    lines = client.get(job["links"]["logs"]).text.splitlines()
    return [line.split('"code":"')[1].split('"')[0] for line in lines]


def test_it_is_accepted_as_a_job_of_the_lane_for_downloads(client: TestClient, engine: Engine, redis_url: str) -> None:
    connect(redis_url).flushall()
    response = _post(
        client,
        {**BODY, "name": "juggernaut", "kind": "checkpoint", "default": True, "metadata": {"for": "a friend"}},
    )
    job = response.json()
    assert response.status_code == 201
    assert response.headers["Location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert (job["type"], job["status"], job["model_id"], job["count"]) == ("model_download", "queued", None, 1)
    assert job["params"] == {
        "source": "civitai:277058@1920523",
        "name": "juggernaut",
        "version": None,
        "kind": "checkpoint",
        "default": True,
        "local_only": False,
    }
    assert job["metadata"] == {"for": "a friend"}
    assert [step["name"] for step in job["steps"]] == ["download"]
    assert job["progress"]["items_total"] == job["progress"]["queue_position"] == 1
    redis = connect(redis_url)
    assert [redis.llen(f"rq:queue:{QUEUE_NAMES[lane]}") for lane in (Lane.IO, Lane.GPU)] == [1, 0]
    claims = ClaimStore(engine=engine)
    assert claims.claim(lane=Lane.GPU, lease_token=uuid.uuid4(), lease_seconds=30) is None, "it needs no GPU"
    assert (claims.jobs_ahead(), claims.jobs_ahead(lane=Lane.IO)) == (0, 1)


def test_the_two_lanes_have_a_line_each(client: TestClient) -> None:
    drawn = client.post("/v1/jobs", json=GOOD).json()
    first, second = _asked(client), _asked(client)
    places = {job["id"]: job["progress"]["queue_position"] for job in client.get("/v1/jobs").json()["items"]}
    assert places == {drawn["id"]: 1, first["id"]: 1, second["id"]: 2}


def test_a_reference_is_kept_as_it_is_meant(client: TestClient) -> None:
    job = _asked(client, source="  urn:air:sdxl:checkpoint:civitai:277058@1920523 ")
    assert job["params"]["source"] == "civitai:277058@1920523"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("juggernaut", "Expected"),
        ("hf:stable", "hf:org/repo"),
        ("https://example.org/x.safetensors", "sha256="),
        ("file:/etc/passwd", "dreamforge model import"),
        ("http://127.0.0.1:8265/x.safetensors#sha256=" + "ab" * 32, "https://"),
        ("ftp:x", "No source is called 'ftp'"),
        ("https://huggingface.co/org/repo", "hf:org/repo"),
    ],
)
def test_what_is_no_source_is_refused_at_once_with_what_was_expected(
    client: TestClient, source: str, words: str
) -> None:
    error = assert_envelope(_post(client, {"source": source}), 422, "invalid_request")
    (wrong,) = error["details"]["errors"]
    assert wrong["path"] == "source"
    assert words in wrong["message"]
    assert client.get("/v1/jobs").json()["items"] == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"source": ""},
        {**BODY, "name": "../x"},
        {**BODY, "version": ""},
        {**BODY, "kind": "embedding"},
        {**BODY, "default": "yes"},
        {**BODY, "token": "secret"},
        {**BODY, "config": "/etc"},
    ],
)
def test_a_body_that_is_not_as_described_is_refused(client: TestClient, body: dict[str, Any]) -> None:
    assert_envelope(client.post(PATH, json=body), 422, "invalid_request")


def test_an_idempotency_key_makes_one_job(client: TestClient) -> None:
    key = {"Idempotency-Key": "model-17"}
    first, again = _post(client, headers=key), _post(client, headers=key)
    assert again.json() == first.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert_envelope(_post(client, {"source": "hf:org/other"}, key), 422, "idempotency_key_reused")
    assert_envelope(client.post("/v1/jobs", json=GOOD, headers=key), 422, "idempotency_key_reused")


def test_jobs_of_this_type_are_made_by_no_other_route(client: TestClient) -> None:
    body = {"type": "model_download", "params": {"prompt": "x", **BODY}}
    error = assert_envelope(client.post("/v1/jobs", json=body), 422, "invalid_request")
    (wrong,) = [wrong for wrong in error["details"]["errors"] if wrong["path"] == "type"]
    assert "POST /v1/admin/models" in wrong["message"]


def test_a_service_without_slots_for_it_says_so(database_url: str, redis_url: str, object_store: ObjectStore) -> None:
    state: ApiState = api_state(database_url, redis_url, object_store.blobs(), takes_downloads=False)
    with TestClient(create_app(state)) as client:
        error = assert_envelope(_post(client), 409, "conflict")
        assert "DREAMFORGE_DOWNLOAD_SLOTS" in error["message"]


def test_nor_is_one_retried_there_that_would_wait_for_ever(
    client: TestClient, database_url: str, redis_url: str, object_store: ObjectStore
) -> None:
    job, drawn = _asked(client), client.post("/v1/jobs", json=GOOD).json()
    for ended in (job, drawn):
        assert client.post(ended["links"]["cancel"]).json()["status"] == "cancelled"
    state: ApiState = api_state(database_url, redis_url, object_store.blobs(), takes_downloads=False)
    with TestClient(create_app(state)) as other:
        error = assert_envelope(other.post(f"{job['links']['self']}/retry"), 409, "conflict")
        assert "DREAMFORGE_DOWNLOAD_SLOTS" in error["message"]
        assert other.post(f"{drawn['links']['self']}/retry").status_code == 202
    assert client.get(job["links"]["self"]).json()["status"] == "cancelled"


def test_it_ends_well_with_its_model_and_no_image(client: TestClient, engine: Engine) -> None:
    job = _asked(client)
    claim = _claimed(engine)
    attempt = _begun(engine, claim)
    attempt.record_progress(ItemProgress(item_index=0, stage="download", stage_progress=0.5, progress=0.43))
    half = client.get(job["links"]["self"]).json()
    assert (half["status"], half["progress"]["fraction"], half["progress"]["stage"]) == ("running", 0.43, "download")
    assert half["progress"]["eta_seconds"] is None
    _installed(attempt)
    attempt.report(Outcome(), metadata={})
    EndingStore(engine=engine).finalize(claim.fence)
    done = client.get(job["links"]["self"]).json()
    assert (done["status"], done["progress"]["items_done"], done["progress"]["fraction"]) == ("succeeded", 1, 1.0)
    assert client.get(job["links"]["artifacts"]).json() == {"items": [], "next_cursor": None}
    (item,) = client.get(job["links"]["progress"]).json()["items"]
    assert (item["status"], item["fraction"], item["seed"], item["artifact_id"]) == ("succeeded", 1.0, None, None)
    assert _events(client, job)[-5:] == [
        "item.progress",
        "model.installed",
        "item.finished",
        "step.succeeded",
        "job.succeeded",
    ]
    listed = client.get("/v1/jobs", params={"type": "model_download"}).json()["items"]
    assert [one["id"] for one in listed] == [job["id"]]
    assert client.get("/v1/jobs", params={"type": "generate"}).json()["items"] == []
    assert client.delete(job["links"]["self"]).status_code == 204
    assert client.get(job["links"]["self"]).status_code == 404


def test_a_process_that_dies_after_the_model_is_there_has_succeeded(client: TestClient, engine: Engine) -> None:
    job = _asked(client)
    claim = _claimed(engine)
    _installed(_begun(engine, claim))
    EndingStore(engine=engine).finalize(claim.fence)
    assert client.get(job["links"]["self"]).json()["status"] == "succeeded"


def test_a_dispatcher_that_leaves_puts_back_only_what_is_not_there_yet(client: TestClient, engine: Engine) -> None:
    claims = ClaimStore(engine=engine)
    unfinished = _asked(client)
    claim = _claimed(engine)
    _begun(engine, claim)
    claims.put_back(claim.fence)
    assert client.get(unfinished["links"]["self"]).json()["steps"][0]["status"] == "queued"
    again = _claimed(engine)
    assert again.fence.attempt == 2
    attempt = _begun(engine, again)
    assert len(attempt.missing_items()) == 1
    _installed(attempt)
    assert attempt.missing_items() == ()
    claims.put_back(again.fence)
    assert client.get(unfinished["links"]["self"]).json()["status"] == "succeeded"


def test_one_whose_lease_has_run_out_is_rescued_and_its_old_attempt_writes_nothing(
    client: TestClient, engine: Engine
) -> None:
    job = _asked(client)
    claim = _claimed(engine, lease_seconds=-1.0)
    attempt = AttemptStore(engine=engine, fence=claim.fence)
    assert RescueStore(engine=engine).rescue_one() is not None
    assert client.get(job["links"]["self"]).json()["steps"][0]["status"] == "queued"
    with pytest.raises(LeaseLost):
        _installed(attempt)


def test_one_that_failed_is_retried_by_a_person_without_a_model_of_its_own(client: TestClient, engine: Engine) -> None:
    job = _asked(client)
    claim = _claimed(engine)
    attempt = _begun(engine, claim)
    attempt.record_progress(ItemProgress(item_index=0, stage="download", stage_progress=0.5, progress=0.43))
    failure = Failure("source_forbidden", "Accept the licence.")
    attempt.report(Outcome(failure), metadata={})
    EndingStore(engine=engine).finalize(claim.fence)
    failed = client.get(job["links"]["self"]).json()
    assert (failed["status"], failed["error"]["code"]) == ("failed", "source_forbidden")
    retried = client.post(f"{job['links']['self']}/retry")
    assert (retried.status_code, retried.json()["status"]) == (202, "queued")
    assert retried.json()["progress"]["fraction"] == 0.43, "it never goes down"
    assert _claimed(engine).fence.attempt == 2


def test_what_may_pass_is_tried_again_by_itself_and_is_a_dead_letter_in_the_end(
    client: TestClient, engine: Engine
) -> None:
    job = _asked(client)
    for _ in range(3):
        with engine.begin() as connection:
            connection.exec_driver_sql("UPDATE steps SET next_attempt_at = NULL")
        claim = _claimed(engine)
        _begun(engine, claim).report(Outcome(Failure("source_unavailable", "It is away.")), metadata={})
        EndingStore(engine=engine).finalize(claim.fence)
    dead = client.get("/v1/jobs", params={"error_code": "attempts_exhausted"}).json()["items"]
    assert [one["id"] for one in dead] == [job["id"]]


def test_one_that_waits_is_cancelled_at_once(client: TestClient) -> None:
    job = _asked(client)
    answer = client.post(job["links"]["cancel"])
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")


def test_the_lanes_are_counted_apart(client: TestClient) -> None:
    _asked(client)
    client.post("/v1/jobs", json=GOOD)
    client.post("/v1/jobs", json=GOOD)
    told = client.get("/metrics").text
    assert 'dreamforge_due_steps{lane="io"} 1.0' in told
    assert 'dreamforge_due_steps{lane="gpu"} 2.0' in told
