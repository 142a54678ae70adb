"""A dispatcher whose database goes away while steps run, or whose answers are lost."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from sqlalchemy import Engine, text

from dreamforge.queue import connect
from dreamforge.store.engine import open_engine
from tests.figures import Tell
from tests.integration.absence import absence, black_holed, losing_commits, refused
from tests.integration.dispatching import Dispatching
from tests.relay import Relay
from tests.service import wait_for

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("cluster")]

LEASE = 6.0
Outage = Callable[[Relay], AbstractContextManager[None]]


@pytest.fixture
def relay(database_url: str) -> Iterator[Relay]:
    """What stands between the dispatcher and the database; the steps' own processes go around it."""
    with Relay.before(database_url) as relay:
        yield relay


@pytest.fixture
def service(engine: Engine, database_url: str, redis_url: str, relay: Relay) -> Iterator[Dispatching]:
    """A dispatcher behind it."""
    connect(redis_url).flushall()
    behind = open_engine(relay.moved(database_url), application="tests", pool_size=12)
    service = Dispatching(engine=engine, database_url=database_url, redis_url=redis_url, dispatcher_engine=behind)
    yield service
    service.stop()
    behind.dispose()


def _ends(service: Dispatching) -> list[tuple[str, int, int]]:
    """Of each job its status, how many images it has, and how often it was said to have ended."""
    query = text(
        """SELECT jobs.status, (SELECT count(*) FROM artifacts WHERE job_id = jobs.id),
        (SELECT count(*) FROM events WHERE job_id = jobs.id AND code IN ('job.succeeded', 'job.failed')) FROM jobs"""
    )
    with service.engine.connect() as connection:
        return [(row[0], row[1], row[2]) for row in connection.execute(query)]


@pytest.mark.parametrize("outage", [refused, black_holed])
def test_steps_go_on_and_end_once_when_it_is_back(
    service: Dispatching, relay: Relay, outage: Outage, tell: Tell
) -> None:
    jobs = [service.submit() for _ in range(4)]
    with absence(
        outage(relay),
        once=lambda: service.submitted,
        until=lambda: len(service.images()) >= 2,
        # For longer than a lease.
        seconds=LEASE + 3,
    ) as times:
        service.start(lease=LEASE, renew=0.5)
    for new in jobs:
        service.ended(new)
    drained = time.monotonic() - times.over
    assert _ends(service) == [("succeeded", 2, 1)] * 4
    attempts = [service.find(new).steps[0].attempt for new in jobs]
    assert max(attempts) == 1, "nobody was taken for lost"
    tell(
        f"PostgreSQL {outage.__name__.replace('_', ' ')} for the dispatcher",
        drained_once_it_is_back_in_s=drained,
        attempts_for_each_job=max(attempts),
        images_made_again=len(service.images()) - 8,
    )


def test_answers_that_are_lost_after_they_were_given_lose_no_job_and_end_none_twice(
    service: Dispatching, relay: Relay, tell: Tell
) -> None:
    jobs = [service.submit() for _ in range(4)]
    began = time.monotonic()
    with losing_commits(relay, times=10):
        service.start(lease=LEASE, renew=0.5)
        wait_for(lambda: relay.cut_off >= 10, what="the losses")
    for new in jobs:
        service.ended(new)
    assert _ends(service) == [("succeeded", 2, 1)] * 4
    tell(
        "Replies to COMMIT lost to the dispatcher",
        lost=relay.cut_off,
        all_done_after_s=time.monotonic() - began,
        images_made_again=len(service.images()) - 8,
    )
