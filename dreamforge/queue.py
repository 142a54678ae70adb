"""Tickets on RQ: how Postgres' work wakes a dispatcher.

A ticket says "there is work", not which: lost, doubled, reordered or forged tickets do no harm, because work is only
ever claimed in Postgres. Each lane has one RQ queue and each worker listens on one queue: a worker on several loses
jobs silently when it is killed (rq/rq#1716, rq/rq#2079).
"""

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from rq import Queue
from rq.exceptions import DequeueTimeout
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.timeouts import TimerDeathPenalty
from rq.worker import SimpleWorker

from dreamforge.errors import QueueUnavailable
from dreamforge.jobs.job import Lane

TICKET_VERSION = 1
TICKET_FUNCTION = "dreamforge.ticket"
"""The only function name a ticket may carry. It is compared, never imported."""
TICKET_TTL = 86_400
"""Seconds after which an untaken ticket goes; its step stays due and gets another."""
REQUEST_TIMEOUT = 0.5
"""Seconds a request may wait for Redis."""
QUEUE_NAMES = {Lane.GPU: "steps", Lane.IO: "downloads"}
_POLL_SECONDS = 1
_LISTEN_TIMEOUT = 3.0
"""Seconds without an answer after which whoever listens takes Redis for away: more than a poll takes."""
_AWAY_PAUSE = 1.0
_WORKER_TTL = 60

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ticket:
    """There is work; names the step that made it due, for the log."""

    step_id: str
    job_id: str
    step: str
    attempt: int
    request_id: str
    traceparent: str | None = None
    v: int = TICKET_VERSION


_REHEARSAL = Ticket(step_id="rehearsal", job_id="rehearsal", step="rehearsal", attempt=0, request_id="rehearsal")


@contextmanager
def _queue_errors() -> Generator[None]:
    try:
        yield
    except RedisError as error:
        raise QueueUnavailable from error


def connect(redis_url: str, *, timeout: float = REQUEST_TIMEOUT) -> Redis:
    """A client that gives up after ``timeout`` seconds and never repeats a command on its own."""
    return Redis.from_url(
        redis_url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
    )


class TicketQueue:
    """One lane's queue. Raises ``QueueUnavailable`` when Redis is away."""

    def __init__(self, *, redis: Redis, lane: Lane) -> None:
        self._redis = redis
        self._queue = Queue(QUEUE_NAMES[lane], connection=redis, serializer=JSONSerializer)

    def push(self, ticket: Ticket) -> None:
        """Put a ticket into the queue."""
        with _queue_errors():
            self._queue.enqueue_call(
                TICKET_FUNCTION,
                kwargs=asdict(ticket),
                timeout=-1,
                result_ttl=0,
                ttl=TICKET_TTL,
                failure_ttl=TICKET_TTL,
                description=f"{ticket.step} of job {ticket.job_id}",
                job_id=f"{ticket.step_id}-{ticket.attempt}-{uuid.uuid4().hex[:8]}",
            )

    def is_empty(self) -> bool:
        """True when no ticket waits."""
        with _queue_errors():
            return self._redis.llen(self._queue.key) == 0

    def ping(self) -> None:
        """Return when Redis answers."""
        with _queue_errors():
            self._redis.ping()


def rehearse(redis_url: str, *, timeout: float) -> None:
    """Send a ticket through a queue of its own, and take it as a slot does.

    Raises ``QueueUnavailable`` when Redis is away or refuses any of the commands that this takes.
    """
    name = f"rehearsal-{uuid.uuid4().hex}"
    with _queue_errors(), connect(redis_url, timeout=timeout) as redis:
        # Before RQ raises the connections' time limit.
        redis.ping()
        queue = Queue(name, connection=redis, serializer=JSONSerializer)
        worker = _TicketWorker(queue=queue, redis=redis)
        worker.register_birth()
        try:
            queue.enqueue_call(TICKET_FUNCTION, kwargs=asdict(_REHEARSAL), timeout=-1, result_ttl=0, ttl=TICKET_TTL)
            taken = Queue.dequeue_any([queue], _POLL_SECONDS, connection=redis, serializer=JSONSerializer)
            if taken is None:
                raise QueueUnavailable("Redis lost a ticket.")
            worker.execute_job(*taken)
            worker.heartbeat()
        finally:
            worker.register_death()
            # RQ keeps the worker for a minute, and deletes a queue by a script, which nothing else here does.
            redis.delete(queue.key, queue.intermediate_queue_key, worker.key)
            redis.srem(Queue.redis_queues_keys, queue.key)


class BrokenTicket(Exception):
    """A message that is no ticket."""


def parse_ticket(job: Job) -> Ticket:
    """The ticket in an RQ message. Raises ``BrokenTicket``; nothing named in the message is ever imported."""
    try:
        function, arguments = job.func_name, job.kwargs
        if function != TICKET_FUNCTION or job.args:
            raise BrokenTicket(f"it asks for {str(function)[:80]!r}")
        ticket = Ticket(**arguments)
    except BrokenTicket:
        raise
    except Exception as error:
        raise BrokenTicket(type(error).__name__) from error
    if ticket.v != TICKET_VERSION:
        raise BrokenTicket(f"version {ticket.v!r}")
    return ticket


class _TicketWorker(SimpleWorker):
    """An RQ worker that takes tickets and runs nothing.

    RQ's own way of running a message imports what the message names, and so do its callbacks, webhooks, maintenance
    and remote commands. All of these are replaced.
    """

    death_penalty_class = TimerDeathPenalty
    log_result_lifespan = False
    # RQ raises the connection's time limit to this one.
    connection_timeout = _LISTEN_TIMEOUT  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride] - RQ's is a property

    def __init__(self, *, queue: Queue, redis: Redis) -> None:
        super().__init__(
            [queue],
            connection=redis,
            serializer=JSONSerializer,
            log_job_description=False,
            worker_ttl=_WORKER_TTL,
        )
        self.taken: Ticket | None = None
        self.lost: RedisError | None = None

    @property
    def should_run_maintenance_tasks(self) -> bool:
        return False

    def subscribe(self) -> None:
        """Listen to no remote commands."""

    def unsubscribe(self) -> None:
        """There is nothing to leave."""

    def _install_signal_handlers(self) -> None:
        """Signals belong to the process, and a slot is a thread."""

    def procline(self, message: str) -> None:
        """The process' title is not a slot's to set."""

    def request_end(self) -> None:
        """End the wait within a second."""
        self._stop_requested = True

    def dequeue_job_and_maintain_ttl(
        self,
        timeout: int | None,  # noqa: ARG002 - RQ's signature
        max_idle_time: int | None = None,  # noqa: ARG002 - RQ's signature
    ) -> tuple[Job, Queue] | None:
        # RQ looks at its stop flag only between two messages, and not at all while Redis is away.
        try:
            while not self._stop_requested:
                self.heartbeat()
                with contextlib.suppress(DequeueTimeout):
                    return self._dequeue()
        except RedisError as error:
            self.lost = error
        return None

    def _dequeue(self) -> tuple[Job, Queue] | None:
        return Queue.dequeue_any(self.queues, _POLL_SECONDS, connection=self.connection, serializer=self.serializer)

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Acknowledge the ticket and keep it; whoever waits for it acts on it once RQ is out of the way."""
        try:
            ticket = parse_ticket(job)
        except BrokenTicket as error:
            log.warning("refused a broken ticket", extra={"ticket": job.id, "reason": str(error)})
            self.handle_job_failure(job, queue, exc_string=f"not a ticket: {error}")
            queue.intermediate_queue.remove(job.id)
            return
        with self.connection.pipeline() as pipeline:
            pipeline.lrem(queue.intermediate_queue_key, 1, job.id)
            pipeline.delete(job.key)
            pipeline.execute()
        self.taken = ticket


class TicketListener:
    """Waits for tickets on one lane, in the thread that calls ``listen``.

    ``on_silence`` is called every few seconds while Redis is away, and when an answer of its was lost: there may have
    been a ticket in it.
    """

    def __init__(
        self, *, redis_url: str, lane: Lane, on_ticket: Callable[[Ticket], None], on_silence: Callable[[], None]
    ) -> None:
        self._redis_url = redis_url
        self._lane = lane
        self._on_ticket = on_ticket
        self._on_silence = on_silence
        self._ending = threading.Event()
        self._worker: _TicketWorker | None = None

    def listen(self) -> None:
        """Hand every ticket to ``on_ticket`` until ``end`` is called. Raises what the two that are called raise."""
        while not self._ending.is_set():
            try:
                ticket = self._next()
            except RedisError as error:
                log.warning("Redis is away", extra={"reason": str(error)[:200]})
                self._on_silence()
                self._ending.wait(_AWAY_PAUSE)
            else:
                if ticket is not None and not self._ending.is_set():
                    self._on_ticket(ticket)

    def _next(self) -> Ticket | None:
        # A connection of its own: RQ's worker changes the time limit of the pool it is given.
        with connect(self._redis_url, timeout=_LISTEN_TIMEOUT) as redis:
            queue = Queue(QUEUE_NAMES[self._lane], connection=redis, serializer=JSONSerializer)
            self._worker = _TicketWorker(queue=queue, redis=redis)
            if not self._ending.is_set():
                # One message, then out: RQ would swallow what goes wrong while it is acted on.
                self._worker.work(max_jobs=1, logging_level="WARNING")
            if self._worker.lost is not None:
                raise self._worker.lost
            return self._worker.taken

    def end(self) -> None:
        """Make ``listen`` return within about a second, or a few while Redis is away."""
        self._ending.set()
        if self._worker is not None:
            self._worker.request_end()
