"""Leases that have run out, over a real Postgres."""

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, Engine, text

from dreamforge.errors import DatabaseUnavailable
from dreamforge.store.claims import Claim
from dreamforge.store.models import NewModel
from dreamforge.store.rescues import RescueStore, UnendableStep
from tests.integration.factories import Jobs, a_job, claim


def _claimed(engine: Engine, jobs: Jobs, model: NewModel) -> Claim:
    jobs.submit(a_job(model))
    claimed = claim(engine)
    assert claimed is not None
    return claimed


def _lapse(engine: Engine, claimed: Claim, *, seconds: int) -> None:
    lapse = text("UPDATE steps SET lease_expires_at = now() - make_interval(secs => :seconds) WHERE id = :id")
    with engine.begin() as connection:
        connection.execute(lapse, {"seconds": seconds, "id": claimed.fence.step_id})


def test_the_longest_lapsed_first_and_nobody_who_holds_a_lease(engine: Engine, jobs: Jobs, model: NewModel) -> None:
    first, second, holder = (_claimed(engine, jobs, model) for _ in range(3))
    _lapse(engine, first, seconds=1)
    _lapse(engine, second, seconds=2)
    store = RescueStore(engine=engine)
    rescued = [store.rescue_one() for _ in range(3)]
    assert [fence.step_id for fence, _ in filter(None, rescued)] == [second.fence.step_id, first.fence.step_id]
    assert rescued[2] is None
    assert jobs.find(holder.fence.job_id).steps[0].status == "running"
    assert {jobs.find(one.fence.job_id).steps[0].status for one in (first, second)} == {"queued"}


def test_a_step_that_cannot_be_ended_is_named_and_can_be_passed_over(
    engine: Engine, jobs: Jobs, model: NewModel
) -> None:
    broken, other = (_claimed(engine, jobs, model) for _ in range(2))
    with engine.begin() as connection:
        connection.execute(text("UPDATE steps SET outcome_json = '[1]' WHERE id = :id"), {"id": broken.fence.step_id})
    _lapse(engine, broken, seconds=2)
    _lapse(engine, other, seconds=1)
    store = RescueStore(engine=engine)
    with pytest.raises(UnendableStep) as caught:
        store.rescue_one()
    assert caught.value.step_id == broken.fence.step_id
    rescued = store.rescue_one(skip=[caught.value.step_id])
    assert rescued is not None
    assert rescued[0].step_id == other.fence.step_id
    assert store.rescue_one(skip=[caught.value.step_id]) is None


def _slowly(connection: Connection, *_: object, **__: object) -> None:
    connection.execute(text("SET LOCAL statement_timeout = 50"))
    connection.execute(text("SELECT pg_sleep(60)"))


def _cut_off(connection: Connection, *_: object, **__: object) -> None:
    connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


@pytest.mark.parametrize(("ending", "error"), [(_slowly, UnendableStep), (_cut_off, DatabaseUnavailable)])
def test_one_that_takes_too_long_to_end_is_one_of_these_and_an_absence_of_the_database_is_not(
    engine: Engine,
    jobs: Jobs,
    model: NewModel,
    monkeypatch: pytest.MonkeyPatch,
    ending: Callable[..., None],
    error: type[Exception],
) -> None:
    _lapse(engine, _claimed(engine, jobs, model), seconds=1)
    monkeypatch.setattr("dreamforge.store.rescues.end_attempt", ending)
    with pytest.raises(error):
        RescueStore(engine=engine).rescue_one()


def test_an_outcome_of_another_version_is_read(engine: Engine, jobs: Jobs, model: NewModel) -> None:
    claimed = _claimed(engine, jobs, model)
    with engine.begin() as connection:
        connection.execute(
            text("""UPDATE steps SET outcome_json = '{"failure": {"code": "oom", "colour": "red"}, "more": 1}'""")
        )
    _lapse(engine, claimed, seconds=1)
    assert RescueStore(engine=engine).rescue_one() is not None
    error = jobs.find(claimed.fence.job_id).job.error_json
    assert error == {"code": "oom", "message": "", "details": {}, "suggestions": []}


def test_the_clock_is_the_database_s(engine: Engine) -> None:
    store = RescueStore(engine=engine)
    before = store.now()
    assert 0 < store.now() - before < 60
