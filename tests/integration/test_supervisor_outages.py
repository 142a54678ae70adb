"""One step under its supervisor while the object store hangs or the database is away."""

import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import pytest

from dreamforge.errors import DatabaseUnavailable
from dreamforge.jobs.retry import Budget
from dreamforge.store.endings import EndingStore
from dreamforge.store.engine import open_engine
from tests.integration.bench import Bench, runner_of_this_process, wait_for_savers
from tests.relay import Relay
from tests.service import wait_for

pytestmark = pytest.mark.timeout(180)


def test_a_time_limit_holds_while_an_upload_hangs(bench: Bench) -> None:
    new = bench.submit(count=50)
    claimed = bench.claim()
    with _frozen_store(bench, once=lambda: bench.artifacts(new.id)):
        began = time.monotonic()
        outcome = bench.supervise(claimed, step_timeout=10)
        assert time.monotonic() - began < 25
    assert outcome.failure is not None
    assert outcome.failure.code == "runner_timeout"
    assert runner_of_this_process() is None


def test_a_store_that_takes_its_time_costs_nothing_but_time(bench: Bench) -> None:
    new = bench.submit(count=2)
    claimed = bench.claim()
    with _frozen_store(bench, once=lambda: bench.artifacts(new.id), seconds=12):
        assert bench.supervise(claimed).failure is None
    assert len(bench.artifacts(new.id)) == 2
    assert not [event for event in bench.jobs.events(new.id) if event.level == "warning"]


@contextmanager
def _frozen_store(bench: Bench, *, once: Callable[[], object], seconds: float = 60) -> Generator[None]:
    """Freeze the S3 server as soon as ``once`` holds, until the end of the block or for so many seconds."""
    server = bench.store.process
    assert server is not None
    over = threading.Event()

    def freeze() -> None:
        wait_for(once)
        os.kill(server.pid, signal.SIGSTOP)
        over.wait(seconds)
        os.kill(server.pid, signal.SIGCONT)

    freezer = threading.Thread(target=freeze)
    freezer.start()
    try:
        yield
    finally:
        over.set()
        freezer.join()


@contextmanager
def _taken_away(relay: Relay, *, once: Callable[[], object], until: Callable[[], object]) -> Generator[None]:
    """Take the database away as soon as ``once`` holds, and give it back when ``until`` does."""

    def take_away() -> None:
        wait_for(once)
        with relay.refusing():
            wait_for(until)

    thief = threading.Thread(target=take_away)
    thief.start()
    try:
        yield
    finally:
        thief.join()


def test_a_short_absence_of_the_database_does_not_hide_how_the_attempt_ended(bench: Bench) -> None:
    new = bench.submit(count=50, steps=10)
    claimed = bench.claim()
    with Relay.before(bench.jobs.url) as relay:
        engine = open_engine(relay.moved(bench.jobs.url), application="tests")
        with _taken_away(relay, once=lambda: bench.artifacts(new.id), until=lambda: runner_of_this_process() is None):
            outcome = bench.supervise(claimed, engine=engine)
        wait_for_savers()
        engine.dispose()
    assert outcome.failure is not None
    assert outcome.failure.code == "database_unavailable"
    assert 1 <= len(bench.artifacts(new.id)) < 50
    retry = EndingStore(engine=bench.engine).finalize(claimed.fence).retry
    assert retry is not None
    assert (retry.budget, retry.failure) == (Budget.FAILURES, outcome.failure)


def test_a_database_that_stays_away_ends_the_attempt_without_a_report_or_a_runner(bench: Bench) -> None:
    new = bench.submit(count=50, steps=10)
    claimed = bench.claim()
    is_over = threading.Event()
    with Relay.before(bench.jobs.url) as relay:
        engine = open_engine(relay.moved(bench.jobs.url), application="tests")
        with _taken_away(relay, once=lambda: bench.artifacts(new.id), until=is_over.is_set):
            with pytest.raises(DatabaseUnavailable):
                bench.supervise(claimed, database_grace=1, engine=engine)
            assert runner_of_this_process() is None
            is_over.set()
        wait_for_savers()
        engine.dispose()
    assert bench.jobs.find(new.id).steps[0].outcome_json is None
