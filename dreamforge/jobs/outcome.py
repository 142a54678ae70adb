"""How an attempt ended, and what follows from it."""

from dataclasses import asdict, dataclass, field
from typing import Any

from dreamforge.errors import Cancelled
from dreamforge.jobs.job import StepStatus


@dataclass(frozen=True)
class Failure:
    """An error as clients see it: a code of ``dreamforge.errors``, a sentence, details, what to try."""

    code: str
    message: str
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    suggestions: list[str] = field(default_factory=list[str])

    def as_json(self) -> dict[str, Any]:
        """The error object of jobs and steps."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """What the supervisor reports last. ``failure`` is None when every item has its artifact."""

    failure: Failure | None = None

    def as_json(self) -> dict[str, Any]:
        """The value stored in ``steps.outcome_json``."""
        return {"failure": self.failure.as_json() if self.failure else None}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Outcome":
        """Inverse of ``as_json``."""
        failure = value.get("failure")
        return Outcome(failure=Failure(**failure) if failure else None)


@dataclass(frozen=True)
class Verdict:
    """What becomes of the step. ``failure`` is set when it has failed."""

    status: StepStatus
    failure: Failure | None = None


TRANSIENT_CODES = frozenset(
    {
        "storage_unavailable",
        "database_unavailable",
        "runner_crashed",
        "runner_stalled",
        "gpu_error",
        "node_lost",
        "host_oom",
    }
)
"""Failures that another attempt may mend."""
_STOPPED = TRANSIENT_CODES | {Cancelled.code}


def decide(outcome: Outcome | None, *, items_missing: int, cancel_requested: bool = False) -> Verdict:
    """What becomes of a step whose attempt has ended.

    Artifacts decide before reports: when every item has its artifact the step has succeeded, whatever its process
    said last. ``outcome`` is None when the supervisor vanished without a report. While the job is being cancelled no
    other attempt will come: what was stopped, or might have been tried again, is cancelled; any other failure counts.
    """
    if items_missing == 0:
        return Verdict(StepStatus.SUCCEEDED)
    failure = _failure_of(outcome, items_missing=items_missing)
    if cancel_requested and failure.code in _STOPPED:
        return Verdict(StepStatus.CANCELLED)
    return Verdict(StepStatus.FAILED, failure)


def _failure_of(outcome: Outcome | None, *, items_missing: int) -> Failure:
    if outcome is None:
        return Failure("runner_crashed", "The step's process ended without a report.")
    if outcome.failure is None:
        return Failure("internal", f"{items_missing} images are missing after the step.")
    return outcome.failure
