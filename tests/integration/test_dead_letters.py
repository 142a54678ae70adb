"""Jobs that were tried as often as they may be: found, looked at, and tried again by a person."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from dreamforge.api.state import ApiState
from dreamforge.jobs.outcome import Failure
from dreamforge.jobs.retry import RetryPolicy
from dreamforge.store.endings import EndingStore, RetryRules
from dreamforge.store.listing import JobFilter, page_of_jobs
from dreamforge.store.models import NewModel
from tests.integration.cli import get, posted, ran, succeeded
from tests.integration.door import served
from tests.integration.factories import claimed

_TWICE = RetryRules(policy=RetryPolicy(failures=2, crashes=2, rescues=2, first_pause=0))


@pytest.fixture
def url(state: ApiState, model: NewModel) -> Iterator[str]:
    assert model
    with served(state) as url:
        yield url


def _fail(engine: Engine, failure: Failure | None, *, times: int) -> None:
    for _ in range(times):
        EndingStore(engine=engine, rules=_TWICE).finalize(claimed(engine).fence, lost=failure)


@pytest.fixture
def letters(url: str, engine: Engine) -> dict[str, dict[str, Any]]:
    """A job that killed its processes, one whose store was away, and, no dead letter, one that was too large."""
    jobs: dict[str, dict[str, Any]] = {}
    for name, failure, times in (
        ("poison", None, 2),
        ("exhausted", Failure("storage_unavailable", "The object store [s3] cannot be reached."), 2),
        ("too large", Failure("oom", "The GPU has too little memory."), 1),
    ):
        jobs[name] = posted(url)
        _fail(engine, failure, times=times)
    return jobs


def test_they_are_listed_with_why_and_what_to_do(url: str, letters: dict[str, dict[str, Any]]) -> None:
    listed = json.loads(succeeded(url, "dead", "list", "--json"))["items"]
    assert [job["id"] for job in listed] == [letters["exhausted"]["id"], letters["poison"]["id"]], "newest first"
    assert [job["error"]["code"] for job in listed] == ["attempts_exhausted", "poison"]
    assert listed[0]["error"]["details"]["last"]["code"] == "storage_unavailable"
    said = succeeded(url, "dead", "list")
    assert "poison" in said
    assert "attempts_exhausted" in said
    assert letters["too large"]["id"] not in said
    assert "dreamforge dead retry ID, or --all" in said
    one = succeeded(url, "dead", "list", "--limit", "1")
    assert "There are more: --limit 2" in one


def test_one_is_shown_with_every_try(url: str, letters: dict[str, dict[str, Any]]) -> None:
    said = succeeded(url, "dead", "show", letters["exhausted"]["id"])
    assert said.count("storage_unavailable: The object store [s3] cannot be reached. Again in 0.0 s.") == 1
    assert "attempts_exhausted: The step failed 2 times; the last time: The object store [s3]" in said
    assert "attempt 2, failed" in said
    shown = json.loads(succeeded(url, "dead", "show", letters["poison"]["id"], "--json"))
    assert shown["job"]["error"]["code"] == "poison"
    assert [line["code"] for line in shown["tries"]] == ["step.retrying", "step.failed"]
    refused = ran(url, "dead", "show", letters["too large"]["id"])
    assert refused.returncode == 1
    assert "is no dead letter: it failed with oom" in refused.stderr


def test_one_is_tried_again_with_its_whole_budget(url: str, engine: Engine, letters: dict[str, dict[str, Any]]) -> None:
    said = succeeded(url, "dead", "retry", letters["poison"]["id"])
    assert f"{letters['poison']['id']} is queued again." in said
    _fail(engine, None, times=1)
    assert get(url, letters["poison"]["links"]["self"]).json()["status"] == "running", "it has a try left"
    refused = ran(url, "dead", "retry", letters["poison"]["id"])
    assert (refused.returncode, "is no dead letter: it is running" in refused.stderr) == (1, True)


def test_all_are_tried_again(url: str, letters: dict[str, dict[str, Any]]) -> None:
    for arguments in ([], [letters["poison"]["id"], "--all"]):
        assert ran(url, "dead", "retry", *arguments).returncode == 2
    retried = json.loads(succeeded(url, "dead", "retry", "--all", "--json"))["items"]
    assert {job["id"] for job in retried} == {letters["poison"]["id"], letters["exhausted"]["id"]}
    assert succeeded(url, "dead", "list") == "There are no dead letters.\n"
    assert succeeded(url, "dead", "retry", "--all") == "There are no dead letters.\n"


def test_one_that_cannot_be_tried_again_keeps_none_from_it(url: str, letters: dict[str, dict[str, Any]]) -> None:
    poison, exhausted, too_large = (letters[name]["id"] for name in ("poison", "exhausted", "too large"))
    nobody = "0192f0c1-0000-7000-8000-000000000000"
    ended = ran(url, "dead", "retry", nobody, poison, poison, too_large, exhausted)
    assert ended.returncode == 1
    assert ended.stdout.splitlines() == [f"{poison} is queued again.", f"{exhausted} is queued again."]
    assert ended.stderr.count("✗") == 2
    assert nobody in ended.stderr
    assert f"{too_large} is no dead letter" in ended.stderr


@pytest.mark.parametrize("codes", [("poison", "attempts_exhausted"), ("poison",)])
def test_their_list_has_an_index(engine: Engine, codes: tuple[str, ...]) -> None:
    page = page_of_jobs(JobFilter(error_codes=codes, statuses=("failed",)), user_id="u", after=None, limit=20)
    statement = page.compile(dialect=engine.dialect, compile_kwargs={"render_postcompile": True})
    prepared = str(statement)
    for number, name in enumerate(statement.params, start=1):
        prepared = re.sub(rf"%\({name}\)s(::\w+)?", rf"${number}\1", prepared)
    values = ", ".join(f"'{value}'" for value in statement.params.values())
    with engine.connect() as connection:
        # As a statement that was made often, of a large table: what the parameters are is not looked at.
        for setting in ("enable_seqscan = off", "enable_sort = off", "plan_cache_mode = force_generic_plan"):
            connection.exec_driver_sql(f"SET LOCAL {setting}")
        connection.exec_driver_sql(f"PREPARE listing AS {prepared}")
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN EXECUTE listing({values})").scalars())
        connection.exec_driver_sql("DEALLOCATE listing")
    assert "ix_jobs_dead_letters" in plan, plan
