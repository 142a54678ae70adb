"""What a request to cancel a job does, and what becomes of a job whose step has ended."""

from collections.abc import Collection
from enum import StrEnum

from dreamforge.jobs.job import JobStatus, StepStatus


class CancelAnswer(StrEnum):
    """What follows from a request to cancel."""

    OVER = "over"
    """The job had ended before: nothing changes."""
    NOTED = "noted"
    """It was asked for before: nothing changes."""
    AT_ONCE = "at_once"
    """No step is running: job and steps are cancelled in the transaction of the request."""
    WHEN_STOPPED = "when_stopped"
    """A step is running: its supervisor stops it, and whoever finalizes the step cancels the job."""


def decide_cancel(job: JobStatus, steps: Collection[StepStatus]) -> CancelAnswer:
    """The answer for a job in this state with steps in these.

    >>> decide_cancel(JobStatus.RUNNING, [StepStatus.RUNNING])
    <CancelAnswer.WHEN_STOPPED: 'when_stopped'>
    """
    if job.is_terminal:
        return CancelAnswer.OVER
    if job is JobStatus.CANCELLING:
        return CancelAnswer.NOTED
    return CancelAnswer.WHEN_STOPPED if StepStatus.RUNNING in steps else CancelAnswer.AT_ONCE


def job_after(step: StepStatus, *, is_last: bool, cancel_requested: bool) -> JobStatus | None:
    """What becomes of a job whose step has ended as ``step``; None when it goes on with its next step.

    A step that succeeds while the job is being cancelled starts no other: the job succeeds only if it was the last.
    """
    match step:
        case StepStatus.FAILED:
            return JobStatus.FAILED
        case StepStatus.CANCELLED:
            return JobStatus.CANCELLED
        case StepStatus.SUCCEEDED if is_last:
            return JobStatus.SUCCEEDED
        case StepStatus.SUCCEEDED if cancel_requested:
            return JobStatus.CANCELLED
        case StepStatus.SUCCEEDED:
            return None
        case _:
            raise ValueError(f"a step that is {step} has not ended")
