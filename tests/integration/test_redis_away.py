"""Jobs while Redis is away, and once it is back: accepted in time or refused, and none of them lost or done twice."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx2
import pytest
from redis import Redis
from redis.exceptions import ResponseError
from sqlalchemy import Engine, text

from dreamforge.embedded.object_store import ObjectStore
from dreamforge.embedded.ports import free_port
from dreamforge.embedded.valkey import Valkey
from dreamforge.queue import connect
from dreamforge.store.models import NewModel
from tests.faults import dropped_packets, full_disk, small_disk, stopped
from tests.figures import Tell
from tests.integration.dispatching import Dispatching
from tests.integration.door import assert_envelope
from tests.integration.live_api import LiveApi
from tests.relay import Relay
from tests.service import wait_for

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("cluster")]

POSTS = 10
"""More at a time than there are threads that speak to Redis."""
COUNT = 2
KEPT = 4
"""Of them, the others being cancelled: what they cost is time."""


class OwnValkey:
    """A server for one test to do as it likes with."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.port = free_port()
        self._server = Valkey(
            data=self.data, port=self.port, log=folder / "valkey.log", password_file=folder / "password"
        )

    @property
    def url(self) -> str:
        return self._server.url()

    @property
    def pid(self) -> int:
        assert self._server.process is not None
        return self._server.process.pid

    def start(self) -> None:
        self._server.start()
        self._server.wait_ready()

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[OwnValkey]:
    """A Valkey that was started."""
    server = OwnValkey(tmp_path / "valkey")
    server.start()
    yield server
    server.stop()


@contextmanager
def refused(valkey: OwnValkey) -> Generator[None]:
    """It has ended, and comes back with what it had."""
    valkey.stop()
    yield
    valkey.start()


@contextmanager
def restarted_without_data(valkey: OwnValkey) -> Generator[None]:
    """It was killed, and comes back with nothing."""
    os.kill(valkey.pid, signal.SIGKILL)
    valkey.stop()
    yield
    shutil.rmtree(valkey.data)
    valkey.start()


@contextmanager
def black_holed(valkey: OwnValkey) -> Generator[None]:
    """The network swallows every packet."""
    with dropped_packets(valkey.port):
        yield


@contextmanager
def frozen(valkey: OwnValkey) -> Generator[None]:
    """It stands still."""
    with stopped(valkey.pid):
        yield


@contextmanager
def emptied(valkey: OwnValkey) -> Generator[None]:
    """Somebody has deleted everything, and does it again."""
    connect(valkey.url).flushall()
    yield
    connect(valkey.url).flushall()


@contextmanager
def disk_full(valkey: OwnValkey) -> Generator[None]:
    """Its disk has no room left for what is written to it."""
    valkey.stop()
    with small_disk(valkey.data, mib=8) as disk:
        valkey.start()
        with full_disk(disk):
            # It learns of it by a write that fails.
            with connect(valkey.url) as redis:
                wait_for(lambda: _refuses(redis), what="the finding")
            yield
        wait_for(lambda: not _refuses(connect(valkey.url)), what="the end of the refusals")
        valkey.stop()
    valkey.start()


def _refuses(redis: Redis) -> bool:
    try:
        redis.set("probe", "x" * 100)
    except ResponseError:
        return True
    return False


Outage = Callable[[OwnValkey], AbstractContextManager[None]]


@pytest.fixture
def service(engine: Engine, database_url: str, valkey: OwnValkey, model: NewModel) -> Iterator[Dispatching]:
    """A dispatcher over that Valkey."""
    service = Dispatching(engine=engine, database_url=database_url, redis_url=valkey.url, model=model)
    yield service
    service.stop()


def _post(api: LiveApi) -> tuple[float, httpx2.Response]:
    began = time.monotonic()
    response = api.post(params={"prompt": "a fox"}, count=COUNT)
    return time.monotonic() - began, response


def _lost_and_doubled(service: Dispatching, ids: list[str]) -> tuple[int, int]:
    """How many of the jobs have not succeeded with all their images, and how many images were made beyond those."""
    query = text(
        """SELECT jobs.status, (SELECT count(*) FROM events WHERE job_id = jobs.id AND code = 'item.finished') AS made,
        (SELECT count(*) FROM events WHERE job_id = jobs.id AND code = 'job.succeeded') AS ends
        FROM jobs WHERE id = ANY(CAST(:ids AS uuid[]))"""
    )
    with service.engine.connect() as connection:
        rows = connection.execute(query, {"ids": ids}).all()
    done = [row for row in rows if row.status == "succeeded" and row.made >= COUNT and row.ends == 1]
    return len(ids) - len(done), sum(row.made - COUNT for row in rows)


@pytest.mark.parametrize("outage", [refused, black_holed, frozen, emptied, restarted_without_data, disk_full])
def test_jobs_are_accepted_and_run_meanwhile_or_afterwards_and_each_of_them_once(
    service: Dispatching,
    database_url: str,
    valkey: OwnValkey,
    object_store: ObjectStore,
    outage: Outage,
    tell: Tell,
) -> None:
    service.start(outbox=1.0)
    with LiveApi(database_url=database_url, redis_url=valkey.url, blobs=object_store.blobs()) as api:
        before = api.run(params={"prompt": "a fox"}, count=COUNT)["id"]
        with outage(valkey), ThreadPoolExecutor(POSTS) as clients:
            posted = list(clients.map(lambda _: _post(api), range(POSTS)))
            assert {response.status_code for _, response in posted} == {201}
            ids: list[str] = [response.json()["id"] for _, response in posted]
            for job in ids[KEPT:]:
                assert api.ask("POST", f"/v1/jobs/{job}/cancel").status_code in {200, 202}
            began = time.monotonic()
            wait_for(lambda: any(api.get(f"/v1/jobs/{job}").json()["status"] == "succeeded" for job in ids))
            first = time.monotonic() - began
        back = time.monotonic()
        for job in ids[:KEPT]:
            assert api.wait_for_job(job)["status"] == "succeeded"
        drained = time.monotonic() - back
        for job in ids[KEPT:]:
            assert api.wait_for_job(job)["status"] in {"cancelled", "succeeded"}
        last = api.run(params={"prompt": "a fox"}, count=COUNT)["id"]
    slowest = max(seconds for seconds, _ in posted)
    assert slowest < 2, "it is to be a fraction of a second"
    lost, doubled = _lost_and_doubled(service, [before, *ids[:KEPT], last])
    assert (lost, doubled) == (0, 0)
    tell(
        f"Redis {outage.__name__.replace('_', ' ')}",
        slowest_POST_s=slowest,
        first_job_done_during_it_after_s=first,
        drained_once_it_is_back_in_s=drained,
        jobs_lost=lost,
        images_made_again=doubled,
    )


def test_a_post_waits_for_no_thread_that_waits_for_redis(
    database_url: str, valkey: OwnValkey, object_store: ObjectStore, model: NewModel
) -> None:
    assert model
    is_over = threading.Event()
    with LiveApi(database_url=database_url, redis_url=valkey.url, blobs=object_store.blobs()) as api:
        for _ in range(100):
            api.state.redis_threads.leave(is_over.wait)
        try:
            assert _post(api)[1].status_code == 201
        finally:
            is_over.set()


@pytest.mark.parametrize("outage", [refused, black_holed, frozen])
def test_told_to_reject_it_says_so_at_once_and_writes_nothing(
    service: Dispatching,
    database_url: str,
    valkey: OwnValkey,
    object_store: ObjectStore,
    outage: Outage,
    tell: Tell,
) -> None:
    with LiveApi(
        database_url=database_url, redis_url=valkey.url, blobs=object_store.blobs(), redis_outage="reject"
    ) as api:
        with outage(valkey), ThreadPoolExecutor(POSTS) as clients:
            refusals = list(clients.map(lambda _: _post(api), range(POSTS)))
        for _, response in refusals:
            assert_envelope(response, 503, "queue_unavailable")
            assert int(response.headers["Retry-After"]) >= 1
        slowest = max(seconds for seconds, _ in refusals)
        assert slowest < 2, "it is to be a fraction of a second"
        with service.engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM jobs")) == 0
        wait_for(lambda: _post(api)[1].status_code == 201, what="an accepted job")
    tell(f"Redis {outage.__name__.replace('_', ' ')}, to reject", slowest_POST_s=slowest)


def test_a_ticket_whose_delivery_was_lost_holds_nothing_up(
    engine: Engine,
    database_url: str,
    valkey: OwnValkey,
    object_store: ObjectStore,
    model: NewModel,
    tell: Tell,
) -> None:
    with Relay.before(valkey.url) as relay:
        service = Dispatching(engine=engine, database_url=database_url, redis_url=relay.moved(valkey.url), model=model)
        # It alone would find the job otherwise.
        service.start(outbox=3600)
        wait_for(lambda: _listening(valkey) == 2, what="the slots' wait")
        try:
            with (
                relay.losing_answers(to=b"BLMOVE"),
                LiveApi(database_url=database_url, redis_url=valkey.url, blobs=object_store.blobs()) as api,
            ):
                # Both slots have asked anew by then, and whatever they are answered is lost.
                wait_for(lambda: relay.cut_off >= 2, what="the losses")
                began = time.monotonic()
                job = api.run(params={"prompt": "a fox"}, count=COUNT)
                took = time.monotonic() - began
        finally:
            service.stop()
    assert job["status"] == "succeeded"
    lost, doubled = _lost_and_doubled(service, [job["id"]])
    assert (lost, doubled) == (0, 0)
    tell("Reply to BLMOVE lost", job_done_after_s=took, images_made_again=doubled)


def _listening(valkey: OwnValkey) -> int:
    with connect(valkey.url) as redis:
        return sum(client["cmd"] == "blmove" for client in redis.client_list())  # type: ignore[union-attr] - not awaited


def test_a_dispatcher_can_be_stopped_while_redis_hangs(service: Dispatching, valkey: OwnValkey, tell: Tell) -> None:
    service.start(drain=1)
    wait_for(lambda: _listening(valkey) == 2, what="the slots' wait")
    with stopped(valkey.pid):
        began = time.monotonic()
        assert service.dispatcher is not None
        service.dispatcher.stop()
        took = time.monotonic() - began
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("slot-")]
    tell("Redis frozen", dispatcher_stopped_in_s=took)
