"""A model on its way to a node: shared by those who wait for it, ended by a cancel, gone on with by the next."""

import secrets
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from dreamforge.blobs import Blobs
from dreamforge.errors import LeaseLost
from dreamforge.installation.publishing import Publisher
from dreamforge.jobs.outcome import Outcome
from dreamforge.models.descriptor import ModelFile
from dreamforge.store.jobs import NewJob
from tests.integration.bench import Bench, files_of
from tests.integration.factories import a_model
from tests.integration.rogue import rogue
from tests.metered_relay import MeteredRelay
from tests.service import wait_for

pytestmark = pytest.mark.timeout(120)

GREY = rogue("draw")
SIZE = 6_000_000
HALF = SIZE // 2
LITTLE = 300_000
"""Bytes beside the model's own: answers about objects, and what was on its way when it broke off."""


class Fetching:
    """A model that is only in the object store, which is behind a relay."""

    def __init__(self, bench: Bench, relay: MeteredRelay, folder: Path) -> None:
        self.bench = bench
        self.relay = relay
        self.file = folder / "large.safetensors"
        self.file.write_bytes(secrets.token_bytes(SIZE))
        files = files_of(self.file)
        Publisher(blobs=bench.store.blobs()).publish([(self.file, ModelFile(**vars(files[0])))])
        bench.model = a_model(bench.engine, local_path=f"/installed/elsewhere/{self.file.name}", files=files)
        settings = bench.store.settings()
        self._blobs = Blobs(replace(settings, endpoint=relay.moved(settings.endpoint)))
        self.blob = bench.shelf().blob(files[0].sha256)
        self._pool = ThreadPoolExecutor(4)

    def begin(self, **how: Any) -> tuple[NewJob, "Future[Outcome]"]:
        """A step in a thread of its own."""
        new = self.bench.submit(seed=5)
        claimed = self.bench.claim()
        return new, self._pool.submit(self.bench.supervise, claimed, blobs=self._blobs, runner=GREY, **how)

    def events(self, job: NewJob) -> list[dict[str, Any]]:
        return [event.payload for event in self.bench.jobs.events(job.id) if event.code == "model.fetching"]

    def wait_for_half(self, job: NewJob) -> None:
        """Return once something of the model has come."""
        wait_for(lambda: any(event["bytes_done"] > 0 for event in self.events(job)), what="bytes of the model")

    def end(self) -> None:
        self._pool.shutdown()


@pytest.fixture
def fetching(bench: Bench, tmp_path: Path) -> Iterator[Fetching]:
    """As above."""
    with MeteredRelay.before(bench.store.endpoint) as relay:
        fetching = Fetching(bench, relay, tmp_path)
        yield fetching
        fetching.end()


def test_two_steps_of_a_node_share_one_fetch(fetching: Fetching) -> None:
    with fetching.relay.letting_through(HALF):
        one, first = fetching.begin()
        fetching.wait_for_half(one)
        two, second = fetching.begin()
        # It waits for the first one's, and tells how far that is.
        fetching.wait_for_half(two)
    assert first.result().failure is None
    assert second.result().failure is None
    assert fetching.blob.read_bytes() == fetching.file.read_bytes()
    assert fetching.relay.passed < SIZE + LITTLE
    for job in (one, two):
        assert fetching.events(job)[-1]["bytes_done"] == SIZE


def test_a_cancel_ends_it_and_the_next_step_goes_on_from_there(fetching: Fetching) -> None:
    with fetching.relay.letting_through(HALF):
        new, step = fetching.begin()
        fetching.wait_for_half(new)
        fetching.bench.jobs.cancel(new.id)
        outcome = step.result(timeout=30)
    assert outcome.failure is not None
    assert outcome.failure.code == "cancelled"
    assert not fetching.blob.exists()
    again, step = fetching.begin()
    assert step.result().failure is None
    assert fetching.events(again)[0]["bytes_done"] > 0
    assert fetching.relay.passed < SIZE + 2 * LITTLE


def test_an_attempt_that_was_replaced_fetches_nothing_more(fetching: Fetching) -> None:
    with fetching.relay.letting_through(HALF):
        new, step = fetching.begin()
        fetching.wait_for_half(new)
        with fetching.bench.engine.begin() as connection:
            connection.execute(text("UPDATE steps SET lease_token = gen_random_uuid()"))
        with pytest.raises(LeaseLost):
            step.result(timeout=30)
    assert not fetching.blob.exists()


def test_it_does_not_count_against_the_step_s_time(fetching: Fetching) -> None:
    with fetching.relay.letting_through(HALF):
        new, step = fetching.begin(step_timeout=3.0)
        fetching.wait_for_half(new)
        began = fetching.bench.lease_expires_at()
        # Much longer than the step may take: its lease is renewed all the while.
        wait_for(lambda: (fetching.bench.lease_expires_at() - began).total_seconds() > 4, what="more than its time")
        assert not step.done()
    assert step.result().failure is None


def test_a_store_that_is_away_meanwhile_is_outlasted(fetching: Fetching) -> None:
    with fetching.relay.letting_through(HALF):
        new, step = fetching.begin()
        fetching.wait_for_half(new)
        with fetching.relay.refusing():
            pass
    assert step.result().failure is None
    assert fetching.blob.read_bytes() == fetching.file.read_bytes()
