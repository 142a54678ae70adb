"""Several images that are denoised at once: what of them stays when their attempt ends in the middle."""

import threading
import uuid

import pytest

from dreamforge.errors import DatabaseUnavailable
from dreamforge.jobs.events import ItemProgress
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.endings import EndingStore
from dreamforge.store.events import EventRecord
from dreamforge.worker.journal import Journal
from tests.integration.absence import finalize_and_claim
from tests.integration.bench import Bench
from tests.integration.rogue import rogue
from tests.service import wait_for

pytestmark = pytest.mark.timeout(120)


def test_the_next_attempt_draws_those_that_are_missing_with_the_seeds_they_had(bench: Bench) -> None:
    new = bench.submit(count=6, preset="fast")
    claimed = bench.claim()
    failure = bench.supervise(claimed, runner=rogue("exit_badly", draws=2)).failure
    assert failure is not None
    assert failure.code == "runner_crashed"
    begun = {event.payload["item_index"]: event.payload["seed"] for event in _events(bench, new.id, "item.started")}
    assert set(begun) == {0, 1, 2, 3}
    kept = {row.item_index: row.id for row in bench.artifacts(new.id)}
    assert set(kept) == {0, 1}
    again = finalize_and_claim(bench, claimed)
    assert bench.supervise(again, runner=rogue("draw")).failure is None
    rows = bench.artifacts(new.id)
    assert {row.item_index: row.id for row in rows}.items() >= kept.items()
    assert [row.seed for row in rows][:4] == list(begun.values())
    assert [row.metadata_json["batch_size"] for row in rows] == [4] * 6
    assert len(_events(bench, new.id, "artifact.created")) == 6, "none was made twice"


def test_those_that_were_done_when_their_job_was_cancelled_stay(bench: Bench) -> None:
    new = bench.submit(count=4, seed=5, preset="fast")
    claimed = bench.claim()
    canceller = threading.Thread(target=lambda: (wait_for(lambda: bench.artifacts(new.id)), bench.jobs.cancel(new.id)))
    canceller.start()
    outcome = bench.supervise(claimed, runner=rogue("finish_when_told_to_stop"), cancel_grace=600)
    canceller.join()
    assert outcome.failure is not None
    assert outcome.failure.code == "cancelled"
    EndingStore(engine=bench.engine).finalize(claimed.fence)
    record = bench.jobs.find(new.id).job
    assert (record.status, record.items_done) == ("cancelled", 2)
    assert [row.seed for row in bench.artifacts(new.id)] == [5, 6]


def test_a_runner_that_sends_them_in_another_order_has_crashed(bench: Bench) -> None:
    bench.submit(count=4, seed=5, preset="fast")
    failure = bench.supervise(bench.claim(), runner=rogue("draw_backwards", draws=0)).failure
    assert failure is not None
    assert (failure.code, failure.details["protocol"]) == (
        "runner_crashed",
        "the runner sent an image that was not asked for",
    )


class _Away(AttemptStore):
    """A database that is away as long as it is told so."""

    def __init__(self) -> None:
        self.is_away = True
        self.written: list[ItemProgress] = []

    def record_progress(self, event: ItemProgress, *, number: int = 0) -> None:
        assert number
        if self.is_away:
            raise DatabaseUnavailable
        self.written.append(event)


def test_while_the_database_is_away_the_last_progress_of_each_image_waits_and_no_more() -> None:
    attempt = _Away()
    with Journal(attempt=attempt, grace=60) as journal:
        for step in range(100):
            for index in range(4):
                journal.record_progress(
                    ItemProgress(item_index=index, stage="denoise", stage_progress=step / 100, progress=step / 100)
                )
        attempt.is_away = False
    assert len(attempt.written) <= 5, "the first was under way"
    assert {event.item_index: event.progress for event in attempt.written} == dict.fromkeys(range(4), 0.99)


def _events(bench: Bench, job_id: uuid.UUID, code: str) -> list[EventRecord]:
    return [event for event in bench.jobs.events(job_id) if event.code == code]
