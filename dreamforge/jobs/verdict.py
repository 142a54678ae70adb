"""What becomes of a step whose attempt has ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dreamforge.errors import Cancelled
from dreamforge.jobs.job import StepStatus
from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.jobs.retry import TRANSIENT_CODES, Budget, Retry, RetryPolicy, decide_retry

_STOPPED = TRANSIENT_CODES | {Cancelled.code}


@dataclass(frozen=True)
class Verdict:
    """What becomes of the step. ``failure`` is set when it has failed, ``retry`` when it is queued again."""

    status: StepStatus
    failure: Failure | None = None
    retry: Retry | None = None


@dataclass(frozen=True)
class Circumstances:
    """What is known of the step beside how its attempt ended.

    ``spent`` is what its budgets have been charged with so far; ``jitter`` is drawn from 0 to 1.
    """

    items_missing: int
    cancel_requested: bool = False
    spent: Mapping[Budget, int] = field(default_factory=dict[Budget, int])
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    jitter: float = 1.0


def decide(outcome: Outcome | None, circumstances: Circumstances) -> Verdict:
    """What becomes of a step whose attempt has ended.

    Items decide before reports: when every one is finished the step has succeeded, whatever its process said last.
    ``outcome`` is None when the supervisor vanished without a report. While the job is being cancelled no other attempt
    will come: what was stopped, or might have been tried again, is cancelled; any other failure counts.
    """
    if circumstances.items_missing == 0:
        return Verdict(StepStatus.SUCCEEDED)
    failure = _failure_of(outcome, items_missing=circumstances.items_missing)
    if circumstances.cancel_requested:
        if failure.code in _STOPPED:
            return Verdict(StepStatus.CANCELLED)
        return Verdict(StepStatus.FAILED, failure)
    next_ = decide_retry(failure, spent=circumstances.spent, policy=circumstances.policy, jitter=circumstances.jitter)
    if isinstance(next_, Retry):
        return Verdict(StepStatus.QUEUED, retry=next_)
    return Verdict(StepStatus.FAILED, next_)


def _failure_of(outcome: Outcome | None, *, items_missing: int) -> Failure:
    if outcome is None:
        return Failure("runner_crashed", "The step's process ended without a report.")
    if outcome.failure is None:
        return Failure("internal", f"{items_missing} of the step's items are missing after it.")
    return outcome.failure
