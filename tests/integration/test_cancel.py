"""Cancelling over a real Postgres: what a request does to a job that waits, that runs, and that ends meanwhile."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, text

from dreamforge.errors import LeaseLost
from dreamforge.jobs.cancellation import CancelAnswer
from dreamforge.jobs.events import StepStarted
from dreamforge.jobs.job import JobStatus, Lane, StepStatus
from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.claims import Claim, ClaimStore
from dreamforge.store.endings import EndingStore
from dreamforge.store.jobs import NewJob
from tests.integration.factories import Jobs, a_job, a_model, an_artifact, at_once, claim, claimed, wait_for_lock

GONE = Failure("internal", "gone")
"""A failure that no other attempt would mend."""
STOPPED = Outcome(Failure("cancelled", "stopped"))


def _submitted(engine: Engine, jobs: Jobs, *, count: int = 1) -> NewJob:
    new = a_job(a_model(engine), count=count)
    jobs.submit(new)
    return new


def _add_second_step(engine: Engine, new: NewJob) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO steps (id, job_id, name, position, lane, status)"
                " VALUES (gen_random_uuid(), :job, 'upscale', 1, 'gpu', 'waiting')"
            ),
            {"job": new.id},
        )


def _states(jobs: Jobs, new: NewJob) -> tuple[str, list[str]]:
    record = jobs.find(new.id)
    return record.job.status, [step.status for step in record.steps]


def _codes(jobs: Jobs, new: NewJob) -> list[str]:
    return [event.code for event in jobs.events(new.id)]


def _assert_consistent(jobs: Jobs, new: NewJob) -> None:
    """Whatever came first: one end, told once, and a log without gaps."""
    events = jobs.events(new.id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    codes = [event.code for event in events]
    assert codes.count("job.cancel_requested") <= 1
    status, steps = _states(jobs, new)
    if JobStatus(status).is_terminal:
        assert [code for code in codes if code in {"job.succeeded", "job.failed", "job.cancelled"}] == [f"job.{status}"]
        assert codes[-1] == f"job.{status}"
        assert all(StepStatus(step).is_terminal for step in steps)


def test_a_queued_job_is_cancelled_at_once_with_its_steps(engine: Engine, jobs: Jobs) -> None:
    new = _submitted(engine, jobs)
    _add_second_step(engine, new)
    assert jobs.cancel(new.id) is CancelAnswer.AT_ONCE
    assert _states(jobs, new) == ("cancelled", ["cancelled", "cancelled"])
    assert _codes(jobs, new) == [
        "job.queued", "job.cancel_requested", "step.cancelled", "step.cancelled", "job.cancelled",
    ]  # fmt: skip
    record = jobs.find(new.id)
    assert record.job.cancel_requested_at is not None
    assert record.job.finished_at is not None
    assert record.job.finished_at >= record.job.cancel_requested_at
    *_, upscale, last = jobs.events(new.id)
    assert upscale.payload["step"] == "upscale"
    assert last.payload["items_done"] == 0
    assert 0 <= last.payload["cancel_latency_ms"] < 5000
    assert claim(engine) is None
    assert ClaimStore(engine=engine).due(lane=Lane.GPU, limit=1) == []


def test_a_running_job_is_cancelling_until_its_step_has_ended(engine: Engine, jobs: Jobs) -> None:
    new = _submitted(engine, jobs, count=3)
    fence = claimed(engine).fence
    attempt = AttemptStore(engine=engine, fence=fence)
    attempt.publish(an_artifact(0))
    assert attempt.is_cancel_requested() is False
    assert jobs.cancel(new.id) is CancelAnswer.WHEN_STOPPED
    assert _states(jobs, new) == ("cancelling", ["running"])
    assert attempt.is_cancel_requested() is True
    assert attempt.renew(lease_seconds=30) is True
    attempt.note_cancel_seen()
    attempt.report(STOPPED, metadata={})
    assert EndingStore(engine=engine).finalize(fence).status is StepStatus.CANCELLED
    assert _states(jobs, new) == ("cancelled", ["cancelled"])
    record = jobs.find(new.id)
    assert (record.job.items_done, record.job.error_json, record.steps[0].error_json) == (1, None, None)
    assert record.steps[0].cancel_seen_at is not None
    requested, step, job = [event for event in jobs.events(new.id) if "cancel" in event.code]
    assert (requested.code, step.code, job.code) == ("job.cancel_requested", "step.cancelled", "job.cancelled")
    assert job.payload["items_done"] == 1
    assert 0 <= step.payload["cancel_latency_ms"] <= job.payload["cancel_latency_ms"]


def test_the_latency_is_measured_by_the_database_from_the_request(engine: Engine, jobs: Jobs) -> None:
    new = _submitted(engine, jobs)
    fence = claimed(engine).fence
    jobs.cancel(new.id)
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET cancel_requested_at = cancel_requested_at - interval '90 seconds'"))
    EndingStore(engine=engine).finalize(fence, lost=Failure("cancelled", "stopped"))
    assert 90_000 <= jobs.events(new.id)[-1].payload["cancel_latency_ms"] < 100_000


def test_asking_again_changes_nothing(engine: Engine, jobs: Jobs) -> None:
    new = _submitted(engine, jobs)
    fence = claimed(engine).fence
    jobs.cancel(new.id)
    before = jobs.events(new.id)
    requested_at = jobs.find(new.id).job.cancel_requested_at
    assert jobs.cancel(new.id) is CancelAnswer.NOTED
    assert (jobs.events(new.id), jobs.find(new.id).job.cancel_requested_at) == (before, requested_at)
    EndingStore(engine=engine).finalize(fence, lost=Failure("cancelled", "stopped"))
    before = jobs.events(new.id)
    assert jobs.cancel(new.id) is CancelAnswer.OVER
    assert jobs.events(new.id) == before


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_a_job_that_is_over_stays_as_it_is(engine: Engine, jobs: Jobs, status: str) -> None:
    new = _submitted(engine, jobs)
    fence = claimed(engine).fence
    if status == "succeeded":
        AttemptStore(engine=engine, fence=fence).publish(an_artifact(0))
    EndingStore(engine=engine).finalize(fence, lost=GONE)
    assert jobs.cancel(new.id) is CancelAnswer.OVER
    assert jobs.find(new.id).job.status == status
    assert jobs.find(new.id).job.cancel_requested_at is None


def test_an_unknown_job_and_another_user_s_are_not_there(engine: Engine, jobs: Jobs) -> None:
    new = _submitted(engine, jobs)
    assert jobs.cancel(uuid.uuid4()) is None
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET user_id = 'somebody'"))
    assert jobs.cancel(new.id) is None


def test_a_job_that_has_all_its_images_succeeds_whatever_was_asked(engine: Engine, jobs: Jobs) -> None:
    new = _submitted(engine, jobs, count=2)
    fence = claimed(engine).fence
    attempt = AttemptStore(engine=engine, fence=fence)
    for index in range(2):
        attempt.publish(an_artifact(index))
    jobs.cancel(new.id)
    attempt.report(STOPPED, metadata={})
    EndingStore(engine=engine).finalize(fence)
    assert _states(jobs, new) == ("succeeded", ["succeeded"])
    _assert_consistent(jobs, new)


def test_a_step_that_failed_for_good_before_it_was_stopped_fails_its_job(engine: Engine, jobs: Jobs) -> None:
    new = _submitted(engine, jobs)
    fence = claimed(engine).fence
    jobs.cancel(new.id)
    AttemptStore(engine=engine, fence=fence).report(Outcome(Failure("oom", "too large")), metadata={})
    EndingStore(engine=engine).finalize(fence)
    assert _states(jobs, new) == ("failed", ["failed"])
    _assert_consistent(jobs, new)


def test_a_step_whose_node_was_lost_while_cancelling_is_cancelled(engine: Engine, jobs: Jobs) -> None:
    new = _submitted(engine, jobs)
    fence = claimed(engine).fence
    jobs.cancel(new.id)
    EndingStore(engine=engine).finalize(fence, lost=Failure("node_lost", "gone"))
    assert _states(jobs, new) == ("cancelled", ["cancelled"])


def test_a_step_that_succeeds_while_cancelling_starts_no_next_one(engine: Engine, jobs: Jobs) -> None:
    new = _submitted(engine, jobs)
    _add_second_step(engine, new)
    fence = claimed(engine).fence
    AttemptStore(engine=engine, fence=fence).publish(an_artifact(0))
    assert jobs.cancel(new.id) is CancelAnswer.WHEN_STOPPED
    EndingStore(engine=engine).finalize(fence)
    assert _states(jobs, new) == ("cancelled", ["succeeded", "cancelled"])
    assert _codes(jobs, new)[-3:] == ["step.succeeded", "step.cancelled", "job.cancelled"]


def test_without_a_cancel_the_next_step_is_queued(engine: Engine, jobs: Jobs) -> None:
    new = _submitted(engine, jobs)
    _add_second_step(engine, new)
    fence = claimed(engine).fence
    AttemptStore(engine=engine, fence=fence).publish(an_artifact(0))
    EndingStore(engine=engine).finalize(fence)
    assert _states(jobs, new) == ("running", ["succeeded", "queued"])
    assert jobs.cancel(new.id) is CancelAnswer.AT_ONCE
    assert _states(jobs, new) == ("cancelled", ["succeeded", "cancelled"])


def test_a_failed_step_cancels_those_behind_it_with_their_events(engine: Engine, jobs: Jobs) -> None:
    new = _submitted(engine, jobs)
    _add_second_step(engine, new)
    EndingStore(engine=engine).finalize(claimed(engine).fence, lost=GONE)
    assert _states(jobs, new) == ("failed", ["failed", "cancelled"])
    *_, cancelled, failed = jobs.events(new.id)
    assert (cancelled.code, cancelled.payload) == ("step.cancelled", {"step": "upscale", "cancel_latency_ms": None})
    assert failed.code == "job.failed"


def test_a_step_that_is_put_back_while_cancelling_is_cancelled_instead(engine: Engine, jobs: Jobs) -> None:
    new = _submitted(engine, jobs)
    fence = claimed(engine).fence
    jobs.cancel(new.id)
    ClaimStore(engine=engine).put_back(fence)
    assert _states(jobs, new) == ("cancelled", ["cancelled"])
    assert claim(engine) is None
    _assert_consistent(jobs, new)


def test_a_step_that_waits_for_a_gpu_is_seen_to_be_cancelled_until_a_supervisor_has_it(
    engine: Engine, jobs: Jobs
) -> None:
    new = _submitted(engine, jobs)
    fence = claimed(engine).fence
    claims = ClaimStore(engine=engine)
    assert not claims.is_cancelled_unstarted(fence)
    jobs.cancel(new.id)
    assert claims.is_cancelled_unstarted(fence)
    AttemptStore(engine=engine, fence=fence).start(StepStarted(step="generate", attempt=1, node="n"), metadata={})
    assert not claims.is_cancelled_unstarted(fence)


def test_a_replaced_attempt_is_not_told_of_a_cancel(engine: Engine, jobs: Jobs) -> None:
    new = _submitted(engine, jobs)
    fence = claimed(engine).fence
    ClaimStore(engine=engine).put_back(fence)
    claimed(engine)
    jobs.cancel(new.id)
    attempt = AttemptStore(engine=engine, fence=fence)
    for ask in (attempt.is_cancel_requested, attempt.note_cancel_seen):
        with pytest.raises(LeaseLost):
            ask()


def test_of_many_requests_at_once_one_counts(engine: Engine, jobs: Jobs) -> None:
    for is_running in (False, True):
        new = _submitted(engine, jobs)
        if is_running:
            claimed(engine)
        answers = at_once(*[lambda new=new: jobs.cancel(new.id)] * 6)
        first = CancelAnswer.WHEN_STOPPED if is_running else CancelAnswer.AT_ONCE
        assert answers.count(first) == 1
        assert answers.count(CancelAnswer.NOTED if is_running else CancelAnswer.OVER) == 5
        _assert_consistent(jobs, new)


def test_a_claim_and_a_cancel_at_once_leave_a_job_that_runs_or_is_cancelled(engine: Engine, jobs: Jobs) -> None:
    for _ in range(25):
        new = _submitted(engine, jobs)
        taken, answer = at_once(lambda: claim(engine), lambda new=new: jobs.cancel(new.id))
        if isinstance(taken, Claim):
            assert answer is CancelAnswer.WHEN_STOPPED
            assert _states(jobs, new) == ("cancelling", ["running"])
            EndingStore(engine=engine).finalize(taken.fence, lost=Failure("cancelled", "stopped"))
        else:
            assert answer is CancelAnswer.AT_ONCE
        assert _states(jobs, new) == ("cancelled", ["cancelled"])
        _assert_consistent(jobs, new)


def test_a_cancel_waits_for_a_claim_in_flight_and_sees_what_it_did(engine: Engine, jobs: Jobs) -> None:
    new = _submitted(engine, jobs)
    with ThreadPoolExecutor(1) as pool, engine.connect() as claiming:
        claiming.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": new.id})
        answer = pool.submit(jobs.cancel, new.id)
        wait_for_lock(engine)
        claiming.execute(text("UPDATE jobs SET status = 'running' WHERE id = :id"), {"id": new.id})
        claiming.execute(
            text("UPDATE steps SET status = 'running', lease_token = gen_random_uuid() WHERE job_id = :id"),
            {"id": new.id},
        )
        claiming.commit()
        assert answer.result() is CancelAnswer.WHEN_STOPPED
    assert _states(jobs, new) == ("cancelling", ["running"])


def test_a_job_never_ends_before_its_cancel_was_asked_for(engine: Engine, jobs: Jobs) -> None:
    new = _submitted(engine, jobs)
    fence = claimed(engine).fence
    with ThreadPoolExecutor(1) as pool, engine.connect() as cancelling:
        cancelling.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": new.id})
        # Its transaction begins now, and ends after the other one.
        ending = pool.submit(EndingStore(engine=engine).finalize, fence, lost=Failure("node_lost", "gone"))
        wait_for_lock(engine)
        cancelling.execute(
            text("UPDATE jobs SET status = 'cancelling', cancel_requested_at = clock_timestamp() WHERE id = :id"),
            {"id": new.id},
        )
        cancelling.commit()
        assert ending.result().status is StepStatus.CANCELLED
    record = jobs.find(new.id)
    assert record.job.finished_at is not None
    assert record.job.cancel_requested_at is not None
    assert record.job.finished_at >= record.job.cancel_requested_at
    assert record.steps[0].finished_at is not None
    assert record.steps[0].finished_at >= record.job.cancel_requested_at


def test_a_claim_passes_by_a_job_that_is_being_cancelled(engine: Engine, jobs: Jobs) -> None:
    new = _submitted(engine, jobs)
    other = _submitted(engine, jobs)
    with engine.connect() as cancelling:
        cancelling.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": new.id})
        assert claimed(engine).fence.job_id == other.id


def test_an_ending_and_a_cancel_at_once_give_one_end(engine: Engine, jobs: Jobs) -> None:
    seen: set[str] = set()
    for turn in range(25):
        new = _submitted(engine, jobs)
        fence = claimed(engine).fence
        attempt = AttemptStore(engine=engine, fence=fence)
        if turn % 2:
            attempt.publish(an_artifact(0))
        else:
            attempt.report(Outcome(Failure("runner_crashed", "gone")), metadata={})
        ended, answer = at_once(
            lambda fence=fence: EndingStore(engine=engine).finalize(fence), lambda new=new: jobs.cancel(new.id)
        )
        assert not isinstance(ended, LeaseLost)
        # A step that is to be tried again is nobody's: the cancel that comes then has the last word.
        assert answer in {CancelAnswer.OVER if turn % 2 else CancelAnswer.AT_ONCE, CancelAnswer.WHEN_STOPPED}
        status, _ = _states(jobs, new)
        assert status == ("succeeded" if turn % 2 else "cancelled")
        record = jobs.find(new.id)
        if record.job.cancel_requested_at is not None and status == "cancelled":
            assert record.job.finished_at is not None
            assert record.job.finished_at >= record.job.cancel_requested_at
        _assert_consistent(jobs, new)
        seen.add(status)
    assert "succeeded" in seen
