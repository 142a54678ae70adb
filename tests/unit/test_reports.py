"""A runner's last word: what it may say, and what is made of the rest."""

from typing import Any

import pytest

from dreamforge.jobs.frames import StepFailed
from dreamforge.worker.reports import reported_failure


def _word(code: str, **values: Any) -> StepFailed:
    fields: dict[str, Any] = {
        "message": "It failed.",
        "details": {"a": 1},
        "suggestions": ["Try."],
        "peak_memory": None,
    }
    return StepFailed(code=code, **{**fields, **values})


@pytest.mark.parametrize("code", ["oom", "model_corrupt", "model_incompatible", "gpu_error", "internal"])
def test_its_own_failures_are_taken_as_they_are(code: str) -> None:
    failure = reported_failure(_word(code), was_told_to_stop=False)
    assert (failure.code, failure.message, failure.details, failure.suggestions) == (
        code,
        "It failed.",
        {"a": 1},
        ["Try."],
    )


@pytest.mark.parametrize("code", ["node_lost", "poison", "runner_crashed", "cancelled", "", "x" * 1000])
def test_what_is_not_its_to_say_is_internal(code: str) -> None:
    failure = reported_failure(_word(code), was_told_to_stop=False)
    assert (failure.code, failure.details) == ("internal", {"reported": code[:100]})


def test_it_was_cancelled_only_when_it_was_told_to_stop() -> None:
    assert reported_failure(_word("cancelled"), was_told_to_stop=True).code == "cancelled"


def test_no_report_is_too_long_to_keep() -> None:
    word = _word("oom", message="m" * 10**6, details={"much": "d" * 10**6}, suggestions=["s" * 10**6] * 100)
    failure = reported_failure(word, was_told_to_stop=False)
    assert len(str(failure.as_json())) < 30_000
