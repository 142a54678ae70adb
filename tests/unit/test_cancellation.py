"""What a request to cancel does, and what becomes of steps and jobs that were asked to end."""

import pytest

from dreamforge.jobs.cancellation import CancelAnswer, decide_cancel, job_after
from dreamforge.jobs.job import JOB_TRANSITIONS, JobStatus, StepStatus
from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.jobs.retry import TRANSIENT_CODES
from dreamforge.jobs.verdict import Circumstances, decide


@pytest.mark.parametrize(
    ("job", "steps", "answer"),
    [
        (JobStatus.QUEUED, [StepStatus.QUEUED], CancelAnswer.AT_ONCE),
        (JobStatus.QUEUED, [StepStatus.QUEUED, StepStatus.WAITING], CancelAnswer.AT_ONCE),
        (JobStatus.RUNNING, [StepStatus.QUEUED], CancelAnswer.AT_ONCE),
        (JobStatus.RUNNING, [StepStatus.SUCCEEDED, StepStatus.QUEUED], CancelAnswer.AT_ONCE),
        (JobStatus.RUNNING, [StepStatus.RUNNING, StepStatus.WAITING], CancelAnswer.WHEN_STOPPED),
        (JobStatus.CANCELLING, [StepStatus.RUNNING], CancelAnswer.NOTED),
        (JobStatus.SUCCEEDED, [StepStatus.SUCCEEDED], CancelAnswer.OVER),
        (JobStatus.FAILED, [StepStatus.FAILED], CancelAnswer.OVER),
        (JobStatus.CANCELLED, [StepStatus.CANCELLED], CancelAnswer.OVER),
    ],
)
def test_a_request_is_answered_by_what_runs(job: JobStatus, steps: list[StepStatus], answer: CancelAnswer) -> None:
    assert decide_cancel(job, steps) is answer


@pytest.mark.parametrize("job", [status for status in JobStatus if not status.is_terminal])
def test_whatever_a_request_does_is_a_legal_way(job: JobStatus) -> None:
    for step in StepStatus:
        match decide_cancel(job, [step]):
            case CancelAnswer.AT_ONCE:
                assert JobStatus.CANCELLED in JOB_TRANSITIONS[job]
            # A step runs only in a job that does.
            case CancelAnswer.WHEN_STOPPED if job is not JobStatus.QUEUED:
                assert JobStatus.CANCELLING in JOB_TRANSITIONS[job]
            case _:
                continue


@pytest.mark.parametrize(
    ("step", "is_last", "cancel_requested", "after"),
    [
        (StepStatus.SUCCEEDED, True, False, JobStatus.SUCCEEDED),
        (StepStatus.SUCCEEDED, False, False, None),
        (StepStatus.SUCCEEDED, True, True, JobStatus.SUCCEEDED),
        (StepStatus.SUCCEEDED, False, True, JobStatus.CANCELLED),
        (StepStatus.FAILED, True, True, JobStatus.FAILED),
        (StepStatus.FAILED, False, False, JobStatus.FAILED),
        (StepStatus.CANCELLED, True, True, JobStatus.CANCELLED),
    ],
)
def test_a_job_follows_its_step(
    step: StepStatus, is_last: bool, cancel_requested: bool, after: JobStatus | None
) -> None:
    assert job_after(step, is_last=is_last, cancel_requested=cancel_requested) is after


@pytest.mark.parametrize("step", [StepStatus.WAITING, StepStatus.QUEUED, StepStatus.RUNNING])
def test_a_step_that_goes_on_decides_nothing(step: StepStatus) -> None:
    with pytest.raises(ValueError, match="has not ended"):
        job_after(step, is_last=True, cancel_requested=False)


@pytest.mark.parametrize("code", ["cancelled", *sorted(TRANSIENT_CODES)])
def test_what_would_have_been_tried_again_is_cancelled_instead(code: str) -> None:
    verdict = decide(Outcome(Failure(code, "it ended")), Circumstances(1, cancel_requested=True))
    assert (verdict.status, verdict.failure) == (StepStatus.CANCELLED, None)


def test_a_step_that_vanished_while_cancelling_is_cancelled() -> None:
    assert decide(None, Circumstances(1, cancel_requested=True)).status is StepStatus.CANCELLED


@pytest.mark.parametrize("code", ["oom", "model_corrupt", "runner_timeout", "internal"])
def test_a_step_that_failed_for_good_first_has_failed(code: str) -> None:
    failure = Failure(code, "it failed")
    verdict = decide(Outcome(failure), Circumstances(1, cancel_requested=True))
    assert (verdict.status, verdict.failure) == (StepStatus.FAILED, failure)


def test_a_step_with_all_its_images_has_succeeded_even_so() -> None:
    outcome = Outcome(Failure("cancelled", "stopped"))
    assert decide(outcome, Circumstances(0, cancel_requested=True)).status is StepStatus.SUCCEEDED
