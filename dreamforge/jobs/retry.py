"""A step whose attempt has failed: another attempt, and when, or its end for good. Pure.

Three budgets, by whose fault it was. Each counts what has failed since the last finished image or the last retry by a
person; when one is spent the step has failed, and waits for a person as a dead letter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from dreamforge.jobs.outcome import Failure

ATTEMPTS_EXHAUSTED = "attempts_exhausted"
POISON = "poison"
DEAD_LETTER_CODES = frozenset({ATTEMPTS_EXHAUSTED, POISON})


class Budget(StrEnum):
    """What an attempt is charged to."""

    FAILURES = "failures"
    """Something that the step needs was away, or failed."""
    CRASHES = "crashes"
    """The runner or the supervisor ended without a report: the step itself may be what kills them."""
    RESCUES = "rescues"
    """Its dispatcher or its node was lost: nobody's fault."""


_BUDGET_OF = {
    "storage_unavailable": Budget.FAILURES,
    "source_unavailable": Budget.FAILURES,
    "database_unavailable": Budget.FAILURES,
    "runner_stalled": Budget.FAILURES,
    "gpu_error": Budget.FAILURES,
    "node_error": Budget.FAILURES,
    "host_oom": Budget.FAILURES,
    "runner_crashed": Budget.CRASHES,
    "node_lost": Budget.RESCUES,
}
_NOBODYS = frozenset({"gpu_memory_leaked"})
"""The GPU was none to draw on. It is kept from everybody, so the next attempt has another one, or waits."""
TRANSIENT_CODES = frozenset(_BUDGET_OF) | _NOBODYS
"""Failures that another attempt may mend."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and how long after: seconds double from ``first_pause`` on, up to ``longest_pause``."""

    failures: int = 3
    crashes: int = 3
    rescues: int = 10
    first_pause: float = 2.0
    longest_pause: float = 120.0

    def most(self, budget: Budget) -> int:
        """Attempts that may be charged to the budget; the last one ends the step."""
        return {Budget.FAILURES: self.failures, Budget.CRASHES: self.crashes, Budget.RESCUES: self.rescues}[budget]


@dataclass(frozen=True)
class Retry:
    """Another attempt in ``seconds``. ``spent`` is how much of ``budget`` is gone with the one that has failed.

    Without a budget the one that has failed does not count.
    """

    budget: Budget | None
    spent: int
    seconds: float
    failure: Failure


def decide_retry(
    failure: Failure, *, spent: Mapping[Budget, int], policy: RetryPolicy, jitter: float
) -> Retry | Failure:
    """Another attempt, or the failure that the step ends with. ``jitter`` is drawn from 0 to 1.

    A code that no other attempt would mend ends the step as it is. A spent budget ends it as a dead letter, with the
    last failure in its details.
    """
    if failure.code in _NOBODYS:
        return Retry(None, 0, 0.0, failure)
    budget = _BUDGET_OF.get(failure.code)
    if budget is None:
        return failure
    charged = spent.get(budget, 0) + 1
    if charged >= policy.most(budget):
        return _dead_letter(failure, budget, charged)
    return Retry(budget, charged, _pause(charged, budget, policy=policy, jitter=jitter), failure)


def _pause(charged: int, budget: Budget, *, policy: RetryPolicy, jitter: float) -> float:
    # Whoever lost its node once goes on at once. One that loses them again and again waits as well: a cluster that is
    # broken for a minute must not use up what there is.
    doublings = charged - 2 if budget is Budget.RESCUES else charged - 1
    if doublings < 0:
        return 0.0
    # From a half of it to all of it: steps that failed together do not come back together.
    return min(policy.longest_pause, policy.first_pause * 2**doublings) * (0.5 + jitter / 2)


def _dead_letter(failure: Failure, budget: Budget, charged: int) -> Failure:
    details = {"budget": budget, "attempts": charged, "last": failure.as_json()}
    if budget is Budget.CRASHES:
        return Failure(
            POISON, f"The step's process ended without a report {charged} times; it is not tried again.", details
        )
    return Failure(ATTEMPTS_EXHAUSTED, f"The step failed {charged} times; the last time: {failure.message}", details)
