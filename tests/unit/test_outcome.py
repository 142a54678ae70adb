"""From how an attempt ended to what becomes of its step."""

from dreamforge.jobs.job import StepStatus
from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.jobs.verdict import Circumstances, decide


def test_all_artifacts_mean_success_whatever_was_reported() -> None:
    for outcome in (None, Outcome(), Outcome(Failure("runner_crashed", "gone"))):
        assert decide(outcome, Circumstances(0)).status is StepStatus.SUCCEEDED


def test_a_reported_failure_is_the_steps() -> None:
    failure = Failure("oom", "too large", {"free_bytes": 1}, ["try 768x768"])
    verdict = decide(Outcome(failure), Circumstances(1))
    assert verdict.status is StepStatus.FAILED
    assert verdict.failure == failure


def test_silence_is_a_crash() -> None:
    verdict = decide(None, Circumstances(1))
    assert verdict.retry is not None
    assert verdict.retry.failure.code == "runner_crashed"


def test_success_without_the_images_is_a_bug_not_a_success() -> None:
    verdict = decide(Outcome(), Circumstances(2))
    assert verdict.status is StepStatus.FAILED
    assert verdict.failure is not None
    assert verdict.failure.code == "internal"


def test_an_outcome_survives_its_journey_through_the_database() -> None:
    for outcome in (Outcome(), Outcome(Failure("oom", "m", {"a": 1}, ["b"]))):
        assert Outcome.from_json(outcome.as_json()) == outcome
