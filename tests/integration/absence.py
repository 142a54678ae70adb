"""A server that goes away in the middle of a step, and what the step's events tell afterwards."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from dreamforge.store.claims import Claim
from dreamforge.store.endings import EndingStore
from dreamforge.store.jobs import NewJob
from tests.integration.bench import Bench
from tests.relay import Relay
from tests.service import wait_for


@dataclass
class Absence:
    """When it began, when what was waited for was seen, and when it was over; by the clock that only goes on."""

    began: float = 0.0
    seen: float = 0.0
    over: float = 0.0


@contextmanager
def absence(
    away: AbstractContextManager[object],
    *,
    once: Callable[[], object],
    until: Callable[[], object],
    seconds: float = 0,
) -> Generator[Absence]:
    """``away`` from when ``once`` holds, for so many seconds at least and until ``until`` holds."""
    times = Absence()
    failed: list[BaseException] = []

    def take_away() -> None:
        try:
            wait_for(once, what="the begin of the absence")
            with away:
                times.began = time.monotonic()
                wait_for(until, what="the end of the absence")
                times.seen = time.monotonic()
                wait_for(lambda: time.monotonic() >= times.began + seconds, what="the time")
            times.over = time.monotonic()
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            failed.append(error)

    thief = threading.Thread(target=take_away, name="thief")
    thief.start()
    try:
        yield times
    finally:
        thief.join()
    if failed:
        raise failed[0]


def finished(bench: Bench, new: NewJob) -> list[int]:
    """The items that were finished, one entry for each time."""
    return [event.payload["item_index"] for event in bench.jobs.events(new.id) if event.code == "item.finished"]


def begun(bench: Bench, new: NewJob) -> list[int]:
    """The items that a runner began to draw, one entry for each time."""
    return [event.payload["item_index"] for event in bench.jobs.events(new.id) if event.code == "item.started"]


def warnings(bench: Bench, new: NewJob) -> list[dict[str, Any]]:
    """What the step's warnings say."""
    return [event.payload for event in bench.jobs.events(new.id) if event.level == "warning"]


def assert_dense(bench: Bench, new: NewJob) -> None:
    """No event is missing between two others."""
    seqs = [event.seq for event in bench.jobs.events(new.id)]
    assert seqs == list(range(1, len(seqs) + 1))


def finalize_and_claim(bench: Bench, claimed: Claim) -> Claim:
    """End an attempt that is to be followed by another, at once, and claim that."""
    assert EndingStore(engine=bench.engine).finalize(claimed.fence).retry is not None
    with bench.engine.begin() as connection:
        connection.execute(text("UPDATE steps SET next_attempt_at = NULL"))
    return bench.claim()


@contextmanager
def refused(relay: Relay) -> Generator[None]:
    """Nobody listens."""
    with relay.refusing():
        yield


@contextmanager
def black_holed(relay: Relay) -> Generator[None]:
    """What is sent is taken, and nothing is answered."""
    with relay.frozen():
        yield


@contextmanager
def losing_commits(relay: Relay, *, times: int) -> Generator[None]:
    """Lose the answer to a COMMIT, let one pass, and so on."""
    is_over = threading.Event()

    def lose() -> None:
        while not is_over.is_set():
            before = relay.cut_off
            with relay.losing_answers(to=b"COMMIT"):
                wait_for(lambda before=before: relay.cut_off > before or is_over.is_set(), seconds=60)
            if relay.cut_off >= times:
                return

    loser = threading.Thread(target=lose)
    loser.start()
    try:
        yield
    finally:
        is_over.set()
        loser.join()
