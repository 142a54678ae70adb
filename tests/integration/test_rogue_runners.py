"""Whatever a runner does, its step gets a code, its images stay, nothing of it is left, and the next attempt runs."""

import errno
import re
import signal
import threading
from typing import Any

import psutil
import pytest
from sqlalchemy import text

from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.jobs.retry import Budget
from dreamforge.store.claims import ClaimStore
from dreamforge.store.endings import EndingStore
from dreamforge.worker.child import OUTPUT_KEPT, RunnerProcess
from dreamforge.worker.drawing import MOST_LOG_LINES
from dreamforge.worker.strays import MARK
from tests.integration.bench import Bench
from tests.integration.rogue import MANY_LINES, rogue
from tests.service import wait_for

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second from SIGTERM to SIGKILL."""
    monkeypatch.setattr("dreamforge.worker.session.STOP_GRACE", 0.5)


def _runners() -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in psutil.Process().children(recursive=True):
        try:
            if MARK in process.environ():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _failed(bench: Bench, deed: str, **limits: Any) -> Failure:
    """What an attempt at two images fails with when its runner does the deed after the first."""
    new = bench.submit(count=2, seed=5)
    claimed = bench.claim()
    failure = bench.supervise(claimed, runner=rogue(deed), **limits).failure
    assert failure is not None
    assert not _runners()
    assert [row.seed for row in bench.artifacts(new.id)] == [5], "what was drawn before stays"
    verdict = EndingStore(engine=bench.engine).finalize(claimed.fence)
    assert verdict.status == "queued"
    with bench.engine.begin() as connection:
        connection.execute(text("UPDATE steps SET next_attempt_at = NULL"))
    again = bench.claim()
    assert bench.supervise(again, runner=rogue("draw")).failure is None
    EndingStore(engine=bench.engine).finalize(again.fence)
    assert [(row.attempt, row.seed) for row in bench.artifacts(new.id)] == [(1, 5), (2, 6)]
    assert bench.jobs.find(new.id).job.status == "succeeded"
    return failure


@pytest.mark.parametrize(
    ("deed", "exit_code"),
    [
        ("exit_well", 0),
        ("exit_badly", 3),
        ("segfault", -signal.SIGSEGV),
        ("close_the_socket", -signal.SIGTERM),
        ("leave_a_grandchild", 4),
        ("leave_a_fork", 6),
    ],
)
def test_one_that_ends_without_a_report_has_crashed(bench: Bench, deed: str, exit_code: int) -> None:
    failure = _failed(bench, deed)
    assert (failure.code, failure.details) == ("runner_crashed", {"exit_code": exit_code})


@pytest.mark.parametrize(
    ("deed", "why"),
    [
        ("garbage", "not a frame"),
        ("huge_frame", "frame too large"),
        ("be_ready_again", "the runner sent ready out of turn"),
    ],
)
def test_one_that_speaks_nonsense_has_crashed(bench: Bench, deed: str, why: str) -> None:
    failure = _failed(bench, deed)
    assert failure.code == "runner_crashed"
    assert why in failure.details["protocol"]


@pytest.mark.parametrize("deed", ["say_nothing", "stand_still", "ignore_sigterm", "hold_the_gil"])
def test_one_that_says_nothing_has_stalled(bench: Bench, deed: str) -> None:
    failure = _failed(bench, deed, stall=4.0)
    assert (failure.code, failure.details) == ("runner_stalled", {"seconds": 4.0})


def test_what_it_had_to_say_is_kept_when_it_stalls(bench: Bench) -> None:
    _failed(bench, "say_nothing", stall=4.0)
    with bench.engine.connect() as connection:
        warnings = connection.scalars(text("SELECT payload_json ->> 'message' FROM events WHERE code = 'log'")).all()
    assert "The runner lives, but has said nothing for too long." in warnings


def test_one_that_talks_without_end_is_heard_for_a_while(bench: Bench) -> None:
    _failed(bench, "talk_without_end")
    with bench.engine.connect() as connection:
        lines = connection.scalars(text("SELECT payload_json ->> 'message' FROM events WHERE code = 'log'")).all()
    assert sum(line.startswith("line ") for line in lines) == MOST_LOG_LINES < MANY_LINES
    assert sum("the rest is not kept" in line for line in lines) == 1


def test_what_is_not_its_to_say_is_not_believed(bench: Bench) -> None:
    bench.submit(count=2, seed=5)
    failure = bench.supervise(bench.claim(), runner=rogue("lie")).failure
    assert failure is not None
    assert (failure.code, failure.details) == ("internal", {"reported": "node_lost"})


def test_a_gigabyte_of_output_is_read_and_its_end_kept(bench: Bench) -> None:
    failure = _failed(bench, "write_a_lot")
    assert (failure.code, failure.details) == ("runner_crashed", {"exit_code": 5})
    with bench.engine.connect() as connection:
        (kept,) = connection.scalars(
            text("SELECT payload_json -> 'details' ->> 'output' FROM events WHERE payload_json -> 'details' ? 'output'")
        ).all()
    assert len(kept) <= OUTPUT_KEPT
    assert kept.endswith("all work and no play\nthe end\n")


@pytest.mark.parametrize("seed", [5, None])
def test_a_batch_of_a_hundred_whose_runner_dies_at_57_goes_on_at_57(bench: Bench, seed: int | None) -> None:
    new = bench.submit(count=100, seed=seed)
    claimed = bench.claim()
    outcome = bench.supervise(claimed, runner=rogue("exit_badly", draws=57))
    assert outcome.failure is not None
    begun = _seeds(bench)
    assert [index for index, known in enumerate(begun) if known is not None] == list(range(58))
    EndingStore(engine=bench.engine).finalize(claimed.fence)
    with bench.engine.begin() as connection:
        connection.execute(text("UPDATE steps SET next_attempt_at = NULL"))
    again = bench.claim()
    assert bench.supervise(again, runner=rogue("draw")).failure is None
    rows = bench.artifacts(new.id)
    assert [row.attempt for row in rows] == [1] * 57 + [2] * 43
    assert [row.seed for row in rows] == _seeds(bench)
    assert _seeds(bench)[:58] == begun[:58], "an image that had begun keeps its seed"
    events = bench.jobs.events(new.id)
    finished = [event.payload["item_index"] for event in events if event.code == "item.finished"]
    assert finished == list(range(100)), "none is made twice"
    fractions = [event.progress["fraction"] for event in events]
    assert fractions == sorted(fractions)


def _seeds(bench: Bench) -> list[int | None]:
    with bench.engine.connect() as connection:
        return list(connection.scalars(text("SELECT seed FROM items ORDER BY item_index")).all())


def _cancelled_at_the_second(bench: Bench, deed: str, **limits: Any) -> list[Any]:
    """The events of a job of three whose runner does the deed, and that is cancelled meanwhile."""
    new = bench.submit(count=3, seed=5)
    claimed = bench.claim()

    def cancel() -> None:
        wait_for(lambda: bench.artifacts(new.id))
        bench.jobs.cancel(new.id)

    canceller = threading.Thread(target=cancel)
    canceller.start()
    outcome = bench.supervise(claimed, runner=rogue(deed), **limits)
    canceller.join()
    assert outcome.failure is not None
    assert outcome.failure.code == "cancelled"
    assert not _runners()
    EndingStore(engine=bench.engine).finalize(claimed.fence)
    assert bench.jobs.find(new.id).job.status == "cancelled"
    return bench.jobs.events(new.id)


def test_a_cancelled_runner_stops_at_its_next_step(bench: Bench) -> None:
    events = _cancelled_at_the_second(bench, "draw_slowly", cancel_grace=600)
    assert events[-1].payload["items_done"] == 1
    assert events[-1].payload["cancel_latency_ms"] < 30_000, "nobody had to wait for the grace to end"


def test_an_image_that_was_as_good_as_done_when_its_job_was_cancelled_stays(bench: Bench) -> None:
    events = _cancelled_at_the_second(bench, "finish_when_told_to_stop", cancel_grace=600)
    assert events[-1].payload["items_done"] == 2


def test_an_image_that_is_sent_twice_is_taken_once_and_its_job_is_cancelled_all_the_same(bench: Bench) -> None:
    new = bench.submit(count=3, seed=5)
    claimed = bench.claim()
    canceller = threading.Thread(target=lambda: (wait_for(lambda: bench.artifacts(new.id)), bench.jobs.cancel(new.id)))
    canceller.start()
    outcome = bench.supervise(claimed, runner=rogue("draw_twice_when_told_to_stop"), cancel_grace=600)
    canceller.join()
    assert outcome.failure is not None
    assert outcome.failure.code == "runner_crashed"
    EndingStore(engine=bench.engine).finalize(claimed.fence)
    record = bench.jobs.find(new.id).job
    assert (record.status, record.items_done) == ("cancelled", 2)


@pytest.mark.parametrize("deed", ["draw_and_hear_nothing", "stand_still", "hold_the_gil"])
def test_a_cancelled_runner_that_does_not_hear_is_ended_when_its_grace_is_over(bench: Bench, deed: str) -> None:
    events = _cancelled_at_the_second(bench, deed, cancel_grace=1.0)
    assert events[-1].payload["items_done"] == 1
    assert events[-1].payload["cancel_latency_ms"] >= 1000


def test_only_the_job_that_was_cancelled_ends(bench: Bench) -> None:
    other = bench.submit(count=1, seed=9)
    other_claim = bench.claim()
    events = _cancelled_at_the_second(bench, "draw_slowly", cancel_grace=600)
    assert re.fullmatch(r"job\.cancelled", events[-1].code)
    assert bench.supervise(other_claim, runner=rogue("draw")).failure is None
    EndingStore(engine=bench.engine).finalize(other_claim.fence)
    assert bench.jobs.find(other.id).job.status == "succeeded"


def test_one_that_does_not_die_keeps_its_gpu_and_not_its_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamforge.worker.child._DEATH_SECONDS", 0.3)
    # As in a call into a driver that hangs: no signal reaches it.
    monkeypatch.setattr(RunnerProcess, "_signal", lambda *_: None)
    bench.submit(count=2, seed=5)
    claimed = bench.claim()
    outcomes: list[Outcome] = []
    supervisor = threading.Thread(
        target=lambda: outcomes.append(bench.supervise(claimed, runner=rogue("stand_still"), stall=2.0))
    )
    supervisor.start()
    claims = ClaimStore(engine=bench.engine)

    def has_reported() -> bool:
        whereabouts = claims.whereabouts(claimed.fence)
        return whereabouts is not None and whereabouts.has_reported

    wait_for(has_reported, what="the report")
    assert EndingStore(engine=bench.engine).finalize(claimed.fence).status == "queued"
    assert supervisor.is_alive()
    (runner,) = _runners()
    runner.kill()
    supervisor.join(10)
    assert [outcome.failure.code for outcome in outcomes if outcome.failure] == ["runner_stalled"]
    assert not _runners()


def test_a_node_that_cannot_start_one_is_charged_to_nobody_s_crashes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(RunnerProcess, "_spawn", fail)
    bench.submit(seed=5)
    claimed = bench.claim()
    failure = bench.supervise(claimed).failure
    assert failure is not None
    assert (failure.code, failure.details) == ("node_error", {"errno": "EAGAIN"})
    retry = EndingStore(engine=bench.engine).finalize(claimed.fence).retry
    assert retry is not None
    assert retry.budget is Budget.FAILURES
