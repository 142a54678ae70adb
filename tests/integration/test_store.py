"""Jobs, claims, leases and endings over a real Postgres."""

import asyncio
import threading
import uuid
from dataclasses import replace

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import IntegrityError

from dreamforge.errors import DatabaseUnavailable, LeaseLost
from dreamforge.jobs.events import ItemProgress, ItemStarted, RunnerLog, StepStarted
from dreamforge.jobs.job import Lane, Priority, StepStatus
from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.store import events
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.claims import ClaimStore
from dreamforge.store.endings import EndingStore
from dreamforge.store.engine import open_async_engine, open_engine
from dreamforge.store.events import EventFilter
from dreamforge.store.fence import Fence
from dreamforge.store.idempotency import IdempotencyKey
from dreamforge.store.jobs import JobRecord, JobStore
from dreamforge.store.listing import JobFilter
from tests.integration.factories import Jobs, a_job, a_model, an_artifact, claim, claimed

pytestmark = pytest.mark.every_server


def test_a_submitted_job_is_queued_with_its_items_and_one_event(engine: Engine, jobs: Jobs) -> None:
    new = a_job(a_model(engine), count=3)
    jobs.submit(new)
    record = jobs.find(new.id)
    assert (record.job.status, record.items_total, record.steps[0].status) == ("queued", 3, "queued")
    assert [(event.seq, event.code) for event in jobs.events(new.id)] == [(1, "job.queued")]


def test_a_claim_raises_the_attempt_and_starts_the_job(engine: Engine, jobs: Jobs) -> None:
    new = a_job(a_model(engine))
    jobs.submit(new)
    fence = claimed(engine).fence
    assert (fence.job_id, fence.attempt) == (new.id, 1)
    record = jobs.find(new.id)
    assert (record.job.status, record.steps[0].status) == ("running", "running")
    assert claim(engine) is None


def test_urgent_jobs_are_claimed_first_and_equal_ones_by_age(engine: Engine, jobs: Jobs) -> None:
    model = a_model(engine)
    submitted = [a_job(model, priority=priority) for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH)]
    submitted.append(a_job(model, priority=Priority.HIGH))
    for new in submitted:
        jobs.submit(new)
    order = [claimed(engine).fence.job_id for _ in submitted]
    low, normal, high, high_too = (new.id for new in submitted)
    assert order == [high, high_too, normal, low]


def test_many_claimers_never_share_a_step(engine: Engine, jobs: Jobs) -> None:
    model = a_model(engine)
    for _ in range(20):
        jobs.submit(a_job(model))
    taken: list[uuid.UUID] = []

    def work() -> None:
        # SKIP LOCKED may answer "nothing" while others hold rows: only an empty queue ends the work.
        claims = ClaimStore(engine=engine)
        while claims.due(lane=Lane.GPU, limit=1):
            step = claim(engine)
            if step:
                taken.append(step.fence.step_id)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 20


def test_the_slot_renews_until_the_supervisor_has_started(engine: Engine, jobs: Jobs) -> None:
    jobs.submit(a_job(a_model(engine)))
    fence = claimed(engine).fence
    claims, attempt = ClaimStore(engine=engine), AttemptStore(engine=engine, fence=fence)
    assert claims.renew_unstarted(fence, lease_seconds=30)
    attempt.start(StepStarted(step="generate", attempt=1, node="n"), metadata={"node": "n"})
    assert not claims.renew_unstarted(fence, lease_seconds=30)
    assert attempt.renew(lease_seconds=30) is False


def test_a_step_goes_from_claim_to_success(engine: Engine, jobs: Jobs) -> None:
    new = a_job(a_model(engine), count=2)
    jobs.submit(new)
    fence = claimed(engine).fence
    attempt = AttemptStore(engine=engine, fence=fence)
    attempt.start(StepStarted(step="generate", attempt=1, node="n"), metadata={"node": "n"})
    for index in range(2):
        attempt.begin_item(ItemStarted(item_index=index, seed=5))
        attempt.record_progress(ItemProgress(item_index=index, stage="denoise", stage_progress=0.5, progress=0.46))
        attempt.publish(an_artifact(index))
    attempt.report(Outcome(), metadata={"memory": {}})
    assert EndingStore(engine=engine).finalize(fence).status is StepStatus.SUCCEEDED
    record = jobs.find(new.id)
    assert (record.job.status, record.job.progress, record.job.items_done) == ("succeeded", 1.0, 2)
    assert record.job.finished_at is not None
    assert record.steps[0].metadata_json == {"node": "n", "memory": {}, "attempt": 1}
    events = jobs.events(new.id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.code for event in events[-2:]] == ["step.succeeded", "job.succeeded"]
    fractions = [event.progress["fraction"] for event in events]
    assert fractions == sorted(fractions)


def test_progress_never_goes_down(engine: Engine, jobs: Jobs) -> None:
    new = a_job(a_model(engine))
    jobs.submit(new)
    attempt = AttemptStore(engine=engine, fence=claimed(engine).fence)
    for progress in (0.6, 0.2):
        attempt.record_progress(ItemProgress(item_index=0, stage="denoise", stage_progress=0.1, progress=progress))
    assert jobs.find(new.id).job.progress == pytest.approx(0.6)


def test_a_failed_step_fails_its_job_with_its_error(engine: Engine, jobs: Jobs) -> None:
    new = a_job(a_model(engine))
    jobs.submit(new)
    fence = claimed(engine).fence
    failure = Failure("oom", "too large", {"free_bytes": 1}, ["try 512x512"])
    AttemptStore(engine=engine, fence=fence).report(Outcome(failure), metadata={})
    EndingStore(engine=engine).finalize(fence)
    record = jobs.find(new.id)
    assert record.job.status == record.steps[0].status == "failed"
    assert record.job.error_json == record.steps[0].error_json == failure.as_json()
    assert [event.code for event in jobs.events(new.id, EventFilter(levels=("error",)))] == [
        "step.failed",
        "job.failed",
    ]


def test_a_step_is_finalized_once(engine: Engine, jobs: Jobs) -> None:
    jobs.submit(a_job(a_model(engine)))
    fence = claimed(engine).fence
    EndingStore(engine=engine).finalize(fence, lost=Failure("node_lost", "gone"))
    with pytest.raises(LeaseLost):
        EndingStore(engine=engine).finalize(fence)


def _stale(fence: Fence) -> list[Fence]:
    return [replace(fence, attempt=fence.attempt + 1), replace(fence, lease_token=uuid.uuid4())]


def test_a_replaced_attempt_writes_nothing(engine: Engine, jobs: Jobs) -> None:
    new = a_job(a_model(engine))
    jobs.submit(new)
    fence = claimed(engine).fence
    before = jobs.events(new.id)
    for stale in _stale(fence):
        attempt = AttemptStore(engine=engine, fence=stale)
        writes = (
            lambda attempt=attempt: attempt.start(StepStarted(step="g", attempt=1, node="n"), metadata={}),
            lambda attempt=attempt: attempt.begin_item(ItemStarted(item_index=0, seed=1)),
            lambda attempt=attempt: attempt.publish(an_artifact(0)),
            lambda attempt=attempt: attempt.report(Outcome(), metadata={}),
            lambda attempt=attempt: attempt.renew(lease_seconds=30),
            lambda stale=stale: EndingStore(engine=engine).finalize(stale),
            lambda stale=stale: ClaimStore(engine=engine).put_back(stale),
        )
        for write in writes:
            with pytest.raises(LeaseLost):
                write()
    assert jobs.events(new.id) == before
    assert jobs.find(new.id).steps[0].status == "running"


def test_a_step_that_was_put_back_goes_on_where_it_was(engine: Engine, jobs: Jobs) -> None:
    new = a_job(a_model(engine), count=2)
    jobs.submit(new)
    first = claimed(engine).fence
    attempt = AttemptStore(engine=engine, fence=first)
    attempt.begin_item(ItemStarted(item_index=0, seed=11))
    attempt.publish(an_artifact(0))
    attempt.begin_item(ItemStarted(item_index=1, seed=12))
    ClaimStore(engine=engine).put_back(first)
    second = claimed(engine).fence
    assert second.attempt == 2
    call = AttemptStore(engine=engine, fence=second).load_call()
    assert [(item.index, item.seed) for item in call.items] == [(1, 12)]
    with pytest.raises(LeaseLost):
        attempt.publish(an_artifact(1))


def test_an_item_has_onean_artifact(engine: Engine, jobs: Jobs) -> None:
    new = a_job(a_model(engine))
    jobs.submit(new)
    attempt = AttemptStore(engine=engine, fence=claimed(engine).fence)
    attempt.publish(an_artifact(0))
    with pytest.raises(IntegrityError):
        attempt.publish(an_artifact(0))
    assert jobs.find(new.id).job.items_done == 1


def test_events_of_many_writers_are_dense_and_none_is_lost(engine: Engine, jobs: Jobs) -> None:
    new = a_job(a_model(engine), count=4)
    jobs.submit(new)
    fence = claimed(engine).fence

    def write(index: int) -> None:
        attempt = AttemptStore(engine=engine, fence=fence)
        for _ in range(50):
            attempt.record_progress(ItemProgress(item_index=index, stage="denoise", stage_progress=0, progress=0))

    threads = [threading.Thread(target=write, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.seq for event in jobs.events(new.id)] == list(range(1, 203))


def test_events_are_filtered_by_level_code_item_and_place(engine: Engine, jobs: Jobs) -> None:
    new = a_job(a_model(engine), count=2)
    jobs.submit(new)
    attempt = AttemptStore(engine=engine, fence=claimed(engine).fence)
    for index in range(2):
        attempt.begin_item(ItemStarted(item_index=index, seed=index))
    assert [event.payload for event in jobs.events(new.id, EventFilter(item_index=1))] == [{"item_index": 1, "seed": 1}]
    assert len(jobs.events(new.id, EventFilter(codes=("item.started",)))) == 2
    assert [event.seq for event in jobs.events(new.id, EventFilter(after=3))] == [4]


def test_events_are_of_exactly_the_levels_that_are_asked_for(engine: Engine, jobs: Jobs) -> None:
    new = a_job(a_model(engine))
    jobs.submit(new)
    with engine.begin() as connection:
        for level in ("debug", "info", "warning", "error", "debug"):
            statement, values = events.append(RunnerLog(message=level), job_id=new.id)
            connection.execute(statement, {**values, "level": level})
    written = jobs.events(new.id)
    assert [event.level for event in written] == ["info", "debug", "info", "warning", "error", "debug"]
    for levels, expected in (
        (("debug",), [2, 6]),
        (("info",), [1, 3]),
        (("warning",), [4]),
        (("error",), [5]),
        (("error", "warning"), [4, 5]),
        ((), [1, 2, 3, 4, 5, 6]),
    ):
        wanted = EventFilter(levels=levels)
        assert [event.seq for event in jobs.events(new.id, wanted)] == expected, levels
        assert [event.seq for event in written if wanted.fits(event)] == expected, "a log that is followed has the same"


@pytest.mark.parametrize("way", ["find", "list", "replay"])
def test_a_job_is_read_as_it_was_at_one_moment(engine: Engine, jobs: Jobs, database_url: str, way: str) -> None:
    key = IdempotencyKey(key_hash="hash", fingerprint="print", ttl=60)
    new = replace(a_job(a_model(engine)), key=key)
    jobs.submit(new)
    fence = claimed(engine).fence
    begun: list[str] = []

    def go_on(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        """After the first statement the step ends, before the second."""
        begun.append(statement)
        if len(begun) == 1:
            attempt = AttemptStore(engine=engine, fence=fence)
            attempt.publish(an_artifact(0))
            attempt.report(Outcome(None), metadata={})
            EndingStore(engine=engine).finalize(fence)

    async def read() -> JobRecord | None:
        reading = open_async_engine(database_url, application="tests")
        store = JobStore(engine=reading)
        event.listen(reading.sync_engine, "after_cursor_execute", go_on)
        try:
            if way == "list":
                return (await store.list(JobFilter(), after=None, limit=1)).jobs[0]
            return await (store.find(new.id) if way == "find" else store.replay(key))
        finally:
            await reading.dispose()

    record = asyncio.run(read())
    assert record is not None
    assert (record.job.status, [step.status for step in record.steps]) == ("running", ["running"])
    after = jobs.find(new.id)
    assert (after.job.status, [step.status for step in after.steps]) == ("succeeded", ["succeeded"])


def test_a_deletion_has_more_time_than_a_read(engine: Engine, jobs: Jobs, database_url: str) -> None:
    new = a_job(a_model(engine))
    jobs.submit(new)
    jobs.cancel(new.id)

    async def delete() -> bool:
        deleting = open_async_engine(database_url, application="tests")
        task = asyncio.create_task(JobStore(engine=deleting).delete(new.id))
        await asyncio.wait({task}, timeout=2.5)
        assert not task.done(), "longer than a statement of the API may take"
        locking.rollback()
        try:
            return await task is not None
        finally:
            await deleting.dispose()

    with engine.connect() as locking:
        locking.execute(text("LOCK TABLE events"))
        assert asyncio.run(delete())


def test_a_database_that_is_away_says_so() -> None:
    nowhere = open_engine("postgresql://u:p@127.0.0.1:1/d", application="tests")
    with pytest.raises(DatabaseUnavailable):
        claim(nowhere)
    nowhere.dispose()
