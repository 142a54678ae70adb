"""Another attempt, or the end: by code, by what has been spent, and when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamforge.jobs.job import StepStatus
from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.jobs.retry import DEAD_LETTER_CODES, TRANSIENT_CODES, Budget, Retry, RetryPolicy, decide_retry
from dreamforge.jobs.verdict import Circumstances, decide

POLICY = RetryPolicy(failures=3, crashes=3, rescues=10, first_pause=2.0, longest_pause=120.0)


def _after(code: str, spent: int, budget: Budget, *, jitter: float = 1.0) -> Retry | Failure:
    return decide_retry(Failure(code, "it ended"), spent={budget: spent}, policy=POLICY, jitter=jitter)


@pytest.mark.parametrize("code", ["oom", "model_corrupt", "runner_timeout", "no_capacity", "disk_full", "internal"])
def test_what_no_other_attempt_would_mend_fails_at_once(code: str) -> None:
    failure = Failure(code, "it ended", {"a": 1}, ["try"])
    assert decide_retry(failure, spent={}, policy=POLICY, jitter=0.5) == failure


@pytest.mark.parametrize(
    ("code", "budget", "most", "dead"),
    [
        ("storage_unavailable", Budget.FAILURES, 3, "attempts_exhausted"),
        ("gpu_error", Budget.FAILURES, 3, "attempts_exhausted"),
        ("runner_crashed", Budget.CRASHES, 3, "poison"),
        ("node_lost", Budget.RESCUES, 10, "attempts_exhausted"),
    ],
)
def test_a_budget_is_spent_and_then_it_is_a_dead_letter_that_names_its_last_failure(
    code: str, budget: Budget, most: int, dead: str
) -> None:
    for spent in range(most - 1):
        retry = _after(code, spent, budget)
        assert isinstance(retry, Retry)
        assert (retry.budget, retry.spent) == (budget, spent + 1)
    last = _after(code, most - 1, budget)
    assert isinstance(last, Failure)
    assert last.code == dead
    assert (last.details["attempts"], last.details["last"]["code"]) == (most, code)


@pytest.mark.parametrize(
    ("code", "budget"),
    [
        ("storage_unavailable", Budget.FAILURES),
        ("database_unavailable", Budget.FAILURES),
        ("runner_stalled", Budget.FAILURES),
        ("gpu_error", Budget.FAILURES),
        ("node_error", Budget.FAILURES),
        ("host_oom", Budget.FAILURES),
        ("runner_crashed", Budget.CRASHES),
        ("node_lost", Budget.RESCUES),
        ("gpu_memory_leaked", None),
    ],
)
def test_each_failure_that_may_pass_is_charged_to_whose_fault_it_was(code: str, budget: Budget | None) -> None:
    verdict = decide_retry(Failure(code, "it ended"), spent={}, policy=POLICY, jitter=1.0)
    assert isinstance(verdict, Retry)
    assert verdict.budget == budget


def test_one_budget_does_not_pay_for_another() -> None:
    retry = decide_retry(
        Failure("runner_crashed", "x"), spent={Budget.FAILURES: 2, Budget.RESCUES: 9}, policy=POLICY, jitter=0
    )
    assert isinstance(retry, Retry)
    assert (retry.budget, retry.spent) == (Budget.CRASHES, 1)


def test_pauses_double_up_to_the_longest_with_half_of_each_left_to_chance() -> None:
    policy = RetryPolicy(failures=100, first_pause=2.0, longest_pause=20.0)

    def pause(spent: int, jitter: float) -> float:
        retry = decide_retry(Failure("gpu_error", "x"), spent={Budget.FAILURES: spent}, policy=policy, jitter=jitter)
        assert isinstance(retry, Retry)
        return retry.seconds

    assert [pause(spent, 1.0) for spent in range(6)] == [2, 4, 8, 16, 20, 20]
    assert [pause(spent, 0.0) for spent in range(6)] == [1, 2, 4, 8, 10, 10]


def test_after_a_lost_node_it_goes_on_at_once_and_after_many_it_waits() -> None:
    retries = [_after("node_lost", spent, Budget.RESCUES) for spent in range(4)]
    assert [retry.seconds for retry in retries if isinstance(retry, Retry)] == [0, 2, 4, 8]


@given(
    code=st.sampled_from([*sorted(TRANSIENT_CODES), "oom", "cancelled", "internal"]),
    missing=st.integers(0, 3),
    cancel=st.booleans(),
    spent=st.dictionaries(st.sampled_from(Budget), st.integers(0, 20)),
    reported=st.booleans(),
)
def test_whatever_happened_there_is_one_sane_verdict(
    code: str, missing: int, cancel: bool, spent: dict[Budget, int], reported: bool
) -> None:
    outcome = Outcome(Failure(code, "x")) if reported else None
    verdict = decide(outcome, Circumstances(missing, cancel_requested=cancel, spent=spent, policy=POLICY))
    assert verdict.status in {StepStatus.SUCCEEDED, StepStatus.FAILED, StepStatus.CANCELLED, StepStatus.QUEUED}
    assert (verdict.status is StepStatus.SUCCEEDED) == (missing == 0)
    assert (verdict.retry is not None) == (verdict.status is StepStatus.QUEUED)
    assert (verdict.failure is not None) == (verdict.status is StepStatus.FAILED)
    if cancel:
        assert verdict.status is not StepStatus.QUEUED, "nothing is tried again for a job that is being cancelled"
    if verdict.failure and verdict.failure.code in DEAD_LETTER_CODES:
        assert verdict.failure.details["last"]["code"] in TRANSIENT_CODES
