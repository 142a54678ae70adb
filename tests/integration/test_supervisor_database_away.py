"""One step under its supervisor while the database is away, or its answers are lost."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager

import pytest
from sqlalchemy import Engine, text

from dreamforge.errors import DatabaseUnavailable, LeaseLost
from dreamforge.jobs.frames import ItemDrawn
from dreamforge.jobs.outcome import Failure
from dreamforge.store.attempts import AttemptStore, NewArtifact
from dreamforge.store.endings import EndingStore
from dreamforge.store.engine import open_engine
from dreamforge.worker.encoding import Origin
from dreamforge.worker.saving import ImageSaver
from tests.figures import Tell
from tests.integration.absence import absence, assert_dense, begun, black_holed, finished, losing_commits, refused
from tests.integration.bench import Bench, runner_of_this_process, wait_for_savers
from tests.integration.rogue import rogue
from tests.relay import Relay

pytestmark = pytest.mark.timeout(180)


@contextmanager
def _over(relay: Relay, bench: Bench) -> Generator[Engine]:
    engine = open_engine(relay.moved(bench.jobs.url), application="tests")
    try:
        yield engine
    finally:
        wait_for_savers()
        engine.dispose()


Outage = Callable[[Relay], AbstractContextManager[None]]


@pytest.mark.parametrize("outage", [refused, black_holed])
def test_it_draws_on_while_the_database_is_away_and_everything_is_written_when_it_is_back(
    bench: Bench, outage: Outage, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = bench.submit(count=20, steps=4)
    claimed = bench.claim()
    drawn: list[int] = []
    save = ImageSaver.save

    def counted(self: ImageSaver, image: ItemDrawn, origin: Origin) -> None:
        drawn.append(image.item_index)
        save(self, image, origin)

    monkeypatch.setattr(ImageSaver, "save", counted)
    with Relay.before(bench.jobs.url) as relay, _over(relay, bench) as engine:
        with absence(
            outage(relay),
            once=lambda: bench.artifacts(new.id),
            # What is held bounds how far it can go on: two that wait to be stored and one that is drawn.
            until=lambda: len(drawn) >= len(bench.artifacts(new.id)) + 3,
            seconds=5,
        ) as times:
            assert bench.supervise(claimed, engine=engine).failure is None
        drained = time.monotonic() - times.over
    assert finished(bench, new) == drawn == list(range(20)), "none is lost, and none is made again"
    assert_dense(bench, new)
    tell(
        f"PostgreSQL {outage.__name__.replace('_', ' ')} during a step",
        drawn_on_for_s=times.seen - times.began,
        drained_once_it_is_back_in_s=drained,
        images_made_again=len(drawn) - 20,
    )


@pytest.mark.parametrize("outage", [refused, black_holed])
def test_one_that_stays_away_ends_the_attempt_without_a_report_or_a_runner(
    bench: Bench, outage: Outage, tell: Tell
) -> None:
    new = bench.submit(count=50, steps=10)
    claimed = bench.claim()
    is_over = threading.Event()
    with (
        Relay.before(bench.jobs.url) as relay,
        _over(relay, bench) as engine,
        absence(outage(relay), once=lambda: bench.artifacts(new.id), until=is_over.is_set) as times,
    ):
        try:
            with pytest.raises(DatabaseUnavailable):
                bench.supervise(claimed, database_grace=2, engine=engine)
            gave_up = time.monotonic() - times.began
            assert runner_of_this_process() is None
        finally:
            is_over.set()
    assert bench.jobs.find(new.id).steps[0].outcome_json is None
    made = finished(bench, new)
    assert made == list(range(len(bench.artifacts(new.id)))), "nothing is written by half"
    # Drawn at random, and not written anywhere else.
    seeds = {int(path.stem): json.loads(path.read_text())["seed"] for path in (bench.folder / "spool").rglob("*.json")}
    assert sorted(seeds) == list(range(len(made), len(made) + len(seeds))), "what was drawn is kept"
    assert seeds
    with bench.engine.begin() as connection:
        connection.execute(text("UPDATE steps SET lease_expires_at = now() - interval '1 hour'"))
    # As its dispatcher does, who has seen the supervisor end without a report.
    lost = Failure("database_unavailable", "The database went away.")
    assert EndingStore(engine=bench.engine).finalize(claimed.fence, lost=lost).retry is not None
    with bench.engine.begin() as connection:
        connection.execute(text("UPDATE steps SET next_attempt_at = NULL"))
    assert bench.supervise(bench.claim(), runner=rogue("draw")).failure is None
    assert finished(bench, new) == list(range(50))
    again = [row.item_index for row in bench.artifacts(new.id) if seeds.get(row.item_index, row.seed) != row.seed]
    assert not again, "what was kept is not drawn again"
    tell(
        f"PostgreSQL {outage.__name__.replace('_', ' ')} for good",
        given_up_after_s=gave_up,
        images_kept=len(seeds),
        images_made_again=len(again),
    )


def test_answers_that_are_lost_after_they_were_given_make_nothing_twice(bench: Bench) -> None:
    new = bench.submit(count=5, seed=5)
    claimed = bench.claim()
    with Relay.before(bench.jobs.url) as relay, _over(relay, bench) as engine:
        with losing_commits(relay, times=6):
            assert bench.supervise(claimed, engine=engine, runner=rogue("draw")).failure is None
        assert relay.cut_off >= 6
    assert finished(bench, new) == begun(bench, new) == list(range(5))
    codes = Counter(event.code for event in bench.jobs.events(new.id))
    assert (codes["step.started"], codes["model.loaded"], codes["artifact.created"]) == (1, 1, 5)
    assert bench.jobs.find(new.id).job.items_done == 5
    assert_dense(bench, new)


def test_an_image_whose_row_was_written_keeps_its_object_whatever_became_of_the_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = bench.submit(count=1, seed=5)
    claimed = bench.claim()
    publish = AttemptStore.publish

    def lose_the_answer(self: AttemptStore, artifact: NewArtifact, *, number: int = 0) -> None:
        publish(self, artifact, number=number)
        # Whoever took it for lost has ended the step by the time it asks again.
        with bench.engine.begin() as connection:
            connection.execute(text("UPDATE steps SET lease_token = gen_random_uuid()"))
        raise DatabaseUnavailable

    monkeypatch.setattr(AttemptStore, "publish", lose_the_answer)
    with pytest.raises(LeaseLost):
        bench.supervise(claimed, runner=rogue("draw"))
    (row,) = bench.artifacts(new.id)
    assert bench.download(row.s3_key)
