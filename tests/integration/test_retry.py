"""`POST /v1/jobs/{id}/retry`: a job that failed or was cancelled is queued again and keeps what it has."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from dreamforge.api.app import create_app
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.errors import Conflict, LeaseLost
from dreamforge.jobs.cancellation import CancelAnswer
from dreamforge.jobs.events import ItemProgress, ItemStarted
from dreamforge.jobs.job import JobStatus, Lane
from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.queue import TicketQueue, connect
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.endings import EndingStore
from dreamforge.store.jobs import NewJob
from dreamforge.store.models import NewModel
from dreamforge.store.retrying import QueuedStep
from tests.integration.bench import Bench
from tests.integration.door import GOOD, api_state, assert_envelope
from tests.integration.factories import Jobs, a_job, an_artifact, at_once, claim, claimed, finish, wait_for_lock


def _failed(engine: Engine, jobs: Jobs, model: NewModel, *, count: int = 3, done: int = 1) -> NewJob:
    """A job that failed while its image behind the ``done`` ones was drawn."""
    new = a_job(model, count=count)
    jobs.submit(new)
    fence = claimed(engine).fence
    attempt = AttemptStore(engine=engine, fence=fence)
    for index in range(done):
        attempt.begin_item(ItemStarted(item_index=index, seed=index))
        attempt.publish(an_artifact(index))
    attempt.begin_item(ItemStarted(item_index=done, seed=77))
    attempt.record_progress(ItemProgress(item_index=done, stage="denoise", stage_progress=0.5, progress=0.46))
    attempt.report(Outcome(Failure("oom", "too large")), metadata={"node": "n"})
    EndingStore(engine=engine).finalize(fence)
    assert jobs.find(new.id).job.status == "failed"
    return new


def _steps(engine: Engine, new: NewJob) -> list[dict[str, object]]:
    with engine.connect() as connection:
        query = text("SELECT * FROM steps WHERE job_id = :id ORDER BY position")
        return [dict(row) for row in connection.execute(query, {"id": new.id}).mappings()]


def test_a_failed_job_is_queued_with_its_budgets_and_keeps_what_it_has(
    engine: Engine, jobs: Jobs, model: NewModel
) -> None:
    new = _failed(engine, jobs, model)
    before = jobs.find(new.id).job
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE steps SET failures = 2, crashes = 3, rescues = 4,"
                " next_attempt_at = now(), cancel_seen_at = now(), metadata_json = metadata_json || '{\"rung\": 3}'"
            )
        )
    step = jobs.retry(new.id)
    assert step == QueuedStep(id=new.step_ids[0], name="generate", lane=Lane.GPU, attempt=1)
    job = jobs.find(new.id).job
    assert (job.status, job.error_json, job.finished_at, job.cancel_requested_at) == ("queued", None, None, None)
    assert (job.items_done, job.progress, job.started_at) == (1, before.progress, before.started_at)
    (row,) = _steps(engine, new)
    assert (row["status"], row["attempt"]) == ("queued", 1)
    assert (row["failures"], row["crashes"], row["rescues"]) == (0, 0, 0)
    assert row["metadata_json"] == {"node": "n"}, "it begins with all the memory that there is"
    cleared = (
        "next_attempt_at", "lease_token", "lease_expires_at", "cancel_seen_at", "started_at", "finished_at",
        "outcome_json", "error_json",
    )  # fmt: skip
    assert [row[name] for name in cleared] == [None] * len(cleared)
    last = jobs.events(new.id)[-1]
    assert (last.code, last.payload, last.progress["items_done"]) == ("job.queued", {"reason": "retry"}, 1)


def test_the_next_attempt_draws_what_is_missing_with_the_seeds_there_were(
    engine: Engine, jobs: Jobs, model: NewModel
) -> None:
    new = _failed(engine, jobs, model)
    jobs.retry(new.id)
    again = claimed(engine)
    assert again.fence.attempt == 2
    call = AttemptStore(engine=engine, fence=again.fence).load_call()
    assert [(item.index, item.seed) for item in call.items] == [(1, 77), (2, None)]
    attempt = AttemptStore(engine=engine, fence=again.fence)
    for index in (1, 2):
        attempt.begin_item(ItemStarted(item_index=index, seed=index))
        attempt.publish(an_artifact(index))
    attempt.report(Outcome(), metadata={})
    EndingStore(engine=engine).finalize(again.fence)
    record = jobs.find(new.id)
    assert (record.job.status, record.job.items_done, record.job.progress) == ("succeeded", 3, 1.0)
    events = jobs.events(new.id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    fractions = [event.progress["fraction"] for event in events]
    assert fractions == sorted(fractions), "progress never goes down"


def test_an_image_that_is_begun_again_is_timed_from_then(engine: Engine, jobs: Jobs, model: NewModel) -> None:
    new = _failed(engine, jobs, model)
    jobs.retry(new.id)
    with engine.connect() as connection:
        query = text("SELECT status, seed, progress, stage, started_at FROM items ORDER BY item_index")
        first, begun, _ = connection.execute(query).all()
    assert first.status == "succeeded"
    assert tuple(begun) == ("pending", 77, 0.46, None, None)


def test_what_is_left_of_the_first_attempt_writes_nothing_more(engine: Engine, jobs: Jobs, model: NewModel) -> None:
    new = a_job(model, count=2)
    jobs.submit(new)
    fence = claimed(engine).fence
    EndingStore(engine=engine).finalize(fence, lost=Failure("internal", "gone"))
    jobs.retry(new.id)
    old = AttemptStore(engine=engine, fence=fence)
    for write in (lambda: old.publish(an_artifact(0)), lambda: EndingStore(engine=engine).finalize(fence)):
        with pytest.raises(LeaseLost):
            write()
    assert claimed(engine).fence.attempt == 2


def test_steps_behind_the_first_wait_for_it_again(engine: Engine, jobs: Jobs, model: NewModel) -> None:
    new = a_job(model)
    jobs.submit(new)
    with engine.begin() as connection:
        for position, name in ((1, "upscale"), (2, "frame")):
            connection.execute(
                text(
                    "INSERT INTO steps (id, job_id, name, position, lane, status)"
                    " VALUES (gen_random_uuid(), :job, :name, :position, 'gpu', 'waiting')"
                ),
                {"job": new.id, "name": name, "position": position},
            )
    EndingStore(engine=engine).finalize(claimed(engine).fence, lost=Failure("internal", "gone"))
    assert [step["status"] for step in _steps(engine, new)] == ["failed", "cancelled", "cancelled"]
    jobs.retry(new.id)
    assert [step["status"] for step in _steps(engine, new)] == ["queued", "waiting", "waiting"]
    fence = claimed(engine).fence
    AttemptStore(engine=engine, fence=fence).publish(an_artifact(0))
    EndingStore(engine=engine).finalize(fence)
    assert jobs.cancel(new.id) is CancelAnswer.AT_ONCE
    assert [step["status"] for step in _steps(engine, new)] == ["succeeded", "cancelled", "cancelled"]
    step = jobs.retry(new.id)
    assert step is not None
    assert step.name == "upscale"
    assert [step["status"] for step in _steps(engine, new)] == ["succeeded", "queued", "waiting"]


def test_a_cancelled_job_can_be_retried_and_cancelled_again(engine: Engine, jobs: Jobs, model: NewModel) -> None:
    new = a_job(model)
    jobs.submit(new)
    for _ in range(3):
        assert jobs.cancel(new.id) is CancelAnswer.AT_ONCE
        assert jobs.retry(new.id) is not None
    assert claim(engine) is not None
    assert jobs.cancel(new.id) is CancelAnswer.WHEN_STOPPED


@pytest.mark.parametrize("status", [status for status in JobStatus if status not in {"failed", "cancelled"}])
def test_in_any_other_state_there_is_nothing_to_retry(
    client: TestClient, engine: Engine, jobs: Jobs, status: str
) -> None:
    job = client.post("/v1/jobs", json=GOOD).json()
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET status = :status"), {"status": status})
    before = jobs.events(uuid.UUID(job["id"]))
    error = assert_envelope(client.post(f"/v1/jobs/{job['id']}/retry"), 409, "conflict")
    assert (error["job_id"], error["details"]) == (job["id"], {"status": status})
    assert status in error["message"]
    assert jobs.events(uuid.UUID(job["id"])) == before


def test_of_two_retries_at_once_one_counts(jobs: Jobs, model: NewModel) -> None:
    for _ in range(10):
        new = a_job(model)
        jobs.submit(new)
        jobs.cancel(new.id)
        answers = at_once(*[lambda new=new: jobs.retry(new.id)] * 4)
        assert sum(isinstance(answer, QueuedStep) for answer in answers) == 1
        assert sum(isinstance(answer, Conflict) for answer in answers) == 3
        codes = [event.code for event in jobs.events(new.id)]
        assert codes.count("job.queued") == 2
        jobs.cancel(new.id)


def test_a_retry_waits_for_whoever_holds_the_job_and_sees_what_became_of_it(
    engine: Engine, jobs: Jobs, model: NewModel
) -> None:
    new = a_job(model)
    jobs.submit(new)
    jobs.cancel(new.id)
    with ThreadPoolExecutor(1) as pool, engine.connect() as holding:
        holding.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": new.id})
        retried = pool.submit(at_once, lambda: jobs.retry(new.id))
        wait_for_lock(engine)
        holding.execute(text("UPDATE jobs SET status = 'succeeded' WHERE id = :id"), {"id": new.id})
        holding.commit()
        (answer,) = retried.result()
    assert isinstance(answer, Conflict)
    assert answer.details == {"status": "succeeded"}


def test_a_retry_and_a_delete_at_once_leave_a_whole_job_or_none(jobs: Jobs, model: NewModel) -> None:
    for _ in range(10):
        new = a_job(model)
        jobs.submit(new)
        jobs.cancel(new.id)
        retried, deleted = at_once(lambda new=new: jobs.retry(new.id), lambda new=new: jobs.delete(new.id))
        if isinstance(retried, QueuedStep):
            assert isinstance(deleted, Conflict)
            assert jobs.find(new.id).job.status == "queued"
        else:
            assert (retried, deleted) == (None, [])


def test_the_route_answers_with_the_job_and_rings(
    client: TestClient, redis_url: str, engine: Engine, object_store: ObjectStore
) -> None:
    job = client.post("/v1/jobs", json={**GOOD, "count": 2}).json()
    finish(engine, object_store.blobs(), count=1, of=2)
    connect(redis_url).flushall()
    answer = client.post(f"/v1/jobs/{job['id']}/retry")
    told = answer.json()
    assert (answer.status_code, told["status"], told["error"], told["finished_at"]) == (202, "queued", None, None)
    assert (told["progress"]["items_done"], told["progress"]["fraction"]) == (1, 0.5)
    assert (told["steps"][0]["status"], told["steps"][0]["attempt"]) == ("queued", 1)
    assert not TicketQueue(redis=connect(redis_url), lane=Lane.GPU).is_empty()
    assert len(client.get(told["links"]["artifacts"]).json()["items"]) == 1


def test_what_is_no_job_cannot_be_retried(client: TestClient, engine: Engine) -> None:
    job = client.post("/v1/jobs", json=GOOD).json()
    client.post(job["links"]["cancel"])
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET user_id = 'somebody'"))
    for id in (str(uuid.uuid4()), "17", job["id"]):
        assert_envelope(client.post(f"/v1/jobs/{id}/retry"), 404, "not_found")
    assert_envelope(client.get(f"/v1/jobs/{job['id']}/retry"), 405, "method_not_allowed")


def test_without_redis_a_retry_is_accepted_or_refused_as_a_post_is(
    database_url: str, object_store: ObjectStore, model: NewModel, engine: Engine, jobs: Jobs
) -> None:
    new = _failed(engine, jobs, model)
    for outage, status in (("reject", 503), ("accept", 202)):
        state = api_state(database_url, "redis://127.0.0.1:1/0", object_store.blobs(), redis_outage=outage)
        with TestClient(create_app(state)) as client:
            assert client.post(f"/v1/jobs/{new.id}/retry").status_code == status
    assert claim(engine) is not None


def test_a_job_that_has_all_its_images_ends_without_drawing(bench: Bench) -> None:
    new = bench.submit(count=2)
    fence = bench.claim().fence
    attempt = AttemptStore(engine=bench.engine, fence=fence)
    for index in range(2):
        attempt.publish(an_artifact(index))
    with bench.engine.begin() as connection:
        # As if it had been cancelled at the last moment.
        connection.execute(text("UPDATE steps SET status = 'cancelled', lease_token = NULL"))
        connection.execute(text("UPDATE jobs SET status = 'cancelled', cancel_requested_at = now()"))
    bench.jobs.retry(new.id)
    again = bench.claim()
    assert bench.supervise(again).failure is None
    EndingStore(engine=bench.engine).finalize(again.fence)
    record = bench.jobs.find(new.id)
    assert (record.job.status, record.steps[0].attempt, record.job.items_done) == ("succeeded", 2, 2)
    assert "runner_pid" not in record.steps[0].metadata_json
    codes = [event.code for event in bench.jobs.events(new.id)]
    assert "model.loading" not in codes
