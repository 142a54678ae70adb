"""What the routes work with, built once for each replica and handed to them."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncEngine

from dreamforge.api.body import MOST_SECONDS
from dreamforge.api.tail import StreamRules, Tail
from dreamforge.api.threads import Threads
from dreamforge.api.waiting import JobEnds
from dreamforge.blobs import MOST_CONNECTIONS, Blobs
from dreamforge.jobs.job import Lane
from dreamforge.queue import TicketQueue, connect
from dreamforge.store.events import EventFeed
from dreamforge.store.jobs import JobStore
from dreamforge.store.models import ModelStore
from dreamforge.store.progress import ProgressStore

BEATS_MISSED = 3
"""Heartbeats that what is alive may miss."""


@dataclass(frozen=True)
class ApiRules:
    """Settings of the API: what to do while Redis is away, bytes of a body, seconds of a presigned URL.

    ``body_seconds``: in which a body must have come. ``idempotency_ttl``: seconds for which an Idempotency-Key stands
    for its job. ``server_adds_request_id``: the server in front puts `X-Request-Id` on every answer. ``allowed_hosts``:
    the names that the service answers to, see ``dreamforge.api.hosts``. ``takes_downloads``: there are slots for them.
    """

    redis_outage: Literal["accept", "reject"]
    max_body: int
    presign_ttl: int
    heartbeat_seconds: float
    body_seconds: float = MOST_SECONDS
    idempotency_ttl: int = 86_400
    server_adds_request_id: bool = False
    allowed_hosts: tuple[str, ...] = ("*",)
    takes_downloads: bool = True
    streams: StreamRules = field(default_factory=StreamRules)

    @property
    def node_silence(self) -> float:
        """Seconds without a sign of life that make a dispatcher or a node be away."""
        return self.heartbeat_seconds * BEATS_MISSED


class ApiState:
    """The stores of one replica, and the threads in which those are asked that block."""

    def __init__(self, *, engine: AsyncEngine, blobs: Blobs, redis_url: str, rules: ApiRules) -> None:
        self.engine = engine
        self.blobs = blobs
        self.rules = rules
        self.jobs = JobStore(engine=engine)
        self.job_ends = JobEnds(jobs=self.jobs)
        self.models = ModelStore(engine=engine, node_silence=rules.node_silence)
        self.progress = ProgressStore(engine=engine)
        self.events = EventFeed(engine=engine)
        self.tail = Tail(feed=self.events, rules=rules.streams)
        self._redis = connect(redis_url)
        self.blob_threads = Threads(name="blobs", most=MOST_CONNECTIONS)
        self.redis_threads = Threads(name="redis", most=8)
        self.tickets = {lane: TicketQueue(redis=self._redis, lane=lane) for lane in Lane}

    def leave(self) -> None:
        """Hold no answer any longer, now and from now on: the replica leaves. May be called from any thread."""
        self.tail.end()
        self.job_ends.leave()

    async def close(self) -> None:
        """End the streams, and give every connection back."""
        self.leave()
        self.blob_threads.close()
        self.redis_threads.close()
        self._redis.close()
        await self.engine.dispose()


def _state(request: Request) -> ApiState:
    return request.app.state.api


State = Annotated[ApiState, Depends(_state)]
