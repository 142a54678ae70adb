"""Tickets over a real Valkey: what comes through, and what is refused."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from redis import Redis
from rq import Callback, Queue
from rq.serializers import DefaultSerializer, JSONSerializer, Serializer

from dreamforge.errors import QueueUnavailable
from dreamforge.jobs.job import Lane
from dreamforge.queue import QUEUE_NAMES, TICKET_FUNCTION, Ticket, TicketListener, TicketQueue, connect, rehearse

TICKET = Ticket(step_id="0192-step", job_id="0192-job", step="generate", attempt=0, request_id="r")

pytestmark = pytest.mark.every_server


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    client = Redis.from_url(redis_url)
    client.flushdb()
    yield client
    client.close()


@pytest.fixture
def taken(redis: Redis, redis_url: str) -> Iterator[list[Ticket]]:
    """What a listener was handed so far."""
    assert redis.ping()
    tickets: list[Ticket] = []
    listener = TicketListener(redis_url=redis_url, lane=Lane.GPU, on_ticket=tickets.append, on_silence=lambda: None)
    thread = threading.Thread(target=listener.listen)
    thread.start()
    yield tickets
    listener.end()
    thread.join(10)
    assert not thread.is_alive()


def _wait(condition: Callable[[], object], *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def _queue(redis: Redis, serializer: Serializer = JSONSerializer) -> Queue:
    return Queue(QUEUE_NAMES[Lane.GPU], connection=redis, serializer=serializer)


def test_a_ticket_arrives_whole_and_leaves_nothing_behind(redis: Redis, taken: list[Ticket]) -> None:
    TicketQueue(redis=redis, lane=Lane.GPU).push(TICKET)
    _wait(lambda: taken)
    assert taken == [TICKET]
    _wait(lambda: not redis.keys("rq:job:*"))
    assert not redis.keys("rq:queue:steps*")


def test_the_queue_knows_whether_a_ticket_waits(redis: Redis) -> None:
    queue = TicketQueue(redis=redis, lane=Lane.GPU)
    assert queue.is_empty()
    queue.push(TICKET)
    assert not queue.is_empty()


@pytest.mark.parametrize(
    "forge",
    [
        lambda redis: _queue(redis).enqueue("os.system", "touch CANARY"),
        lambda redis: _queue(redis).enqueue("subprocess.run", ["touch", "CANARY"]),
        lambda redis: _queue(redis, DefaultSerializer).enqueue("os.system", "touch CANARY"),
        lambda redis: _queue(redis).enqueue(TICKET_FUNCTION, "positional"),
        lambda redis: _queue(redis).enqueue(TICKET_FUNCTION, kwargs={"step_id": 1, "surprise": True}),
        lambda redis: _queue(redis).enqueue(TICKET_FUNCTION, kwargs={**vars(TICKET), "v": 99}),
        lambda redis: _queue(redis).enqueue(TICKET_FUNCTION, on_failure=Callback("os.getpid")),
        lambda redis: redis.rpush(_queue(redis).key, "no-such-job"),
        lambda redis: (redis.set("rq:job:odd", "text"), redis.rpush(_queue(redis).key, "odd")),
        lambda redis: (redis.hset("rq:job:torn", "data", b"\xff\x00"), redis.rpush(_queue(redis).key, "torn")),
    ],
    ids=["shell", "list", "pickle", "args", "fields", "version", "callback", "no job", "wrong type", "torn"],
)
def test_a_forged_message_runs_nothing_and_the_next_ticket_is_taken(
    redis: Redis,
    taken: list[Ticket],
    forge: Callable[[Redis], object],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path_factory.mktemp("canary")
    monkeypatch.chdir(folder)
    forge(redis)
    TicketQueue(redis=redis, lane=Lane.GPU).push(TICKET)
    _wait(lambda: taken, seconds=20)
    assert taken == [TICKET]
    assert not list(folder.iterdir())


def test_a_broken_ticket_is_kept_for_a_person_to_see(redis: Redis, taken: list[Ticket]) -> None:
    job = _queue(redis).enqueue("os.system", "true")
    _wait(lambda: _queue(redis).failed_job_registry.get_job_ids(cleanup=False))
    assert _queue(redis).failed_job_registry.get_job_ids(cleanup=False) == [job.id]
    assert not taken


def test_redis_away_is_said_within_a_second() -> None:
    began = time.monotonic()
    with pytest.raises(QueueUnavailable):
        TicketQueue(redis=connect("redis://127.0.0.1:1/0"), lane=Lane.GPU).push(TICKET)
    assert time.monotonic() - began < 1


def test_a_rehearsal_wakes_nobody_and_leaves_nothing(redis: Redis, taken: list[Ticket], redis_url: str) -> None:
    _wait(lambda: redis.keys("rq:worker:*"))
    before = set(redis.keys())
    rehearse(redis_url, timeout=5)
    assert set(redis.keys()) == before
    assert not taken
