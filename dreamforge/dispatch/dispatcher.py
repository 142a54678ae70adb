"""The dispatcher: as many slots as the cluster has GPUs and one more, some for downloads, the loops beside them."""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine

from dreamforge.dispatch.cluster import GpuNode
from dreamforge.dispatch.flight import Flight, FlightTimes, Tasks
from dreamforge.dispatch.intake import Slot
from dreamforge.dispatch.loops import Loop
from dreamforge.dispatch.outbox import Outbox
from dreamforge.dispatch.rescue import Rescue
from dreamforge.dispatch.slots import Slots
from dreamforge.jobs.job import Lane
from dreamforge.queue import TicketQueue, connect
from dreamforge.store.claims import ClaimStore
from dreamforge.store.endings import RULES, EndingStore, RetryRules
from dreamforge.store.heartbeats import HeartbeatStore
from dreamforge.store.rescues import RescueStore

log = logging.getLogger(__name__)

SURPLUS_SLOTS = 1
"""Steps handed to Ray beyond its GPUs: what makes an autoscaler grow, and what starts the moment a GPU is free."""
_JOIN_SECONDS = 5.0
_RESCUES_PER_LEASE = 6
_OLD_BEATS = 4


@dataclass(frozen=True)
class DispatcherTimes:
    """Seconds."""

    flight: FlightTimes
    heartbeat: float
    outbox: float
    drain: float


@dataclass(frozen=True)
class Downloads:
    """Whether there are any here: so many at once."""

    slots: int
    tasks: Tasks


class Dispatcher:
    """Starts and stops the slots and loops; ``check`` tells whether all of them live.

    ``steps`` are those on a GPU.
    """

    def __init__(
        self,
        *,
        id: str,
        node: str,
        engine: Engine,
        redis_url: str,
        steps: Tasks,
        nodes: Callable[[], list[GpuNode]],
        times: DispatcherTimes,
        downloads: Downloads | None = None,
        rules: RetryRules = RULES,
        new_token: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._id = id
        self._node = node
        self._redis_url = redis_url
        self._nodes = nodes
        self._times = times
        self._new_token = new_token
        self._claims = ClaimStore(engine=engine, rules=rules)
        self._endings = EndingStore(engine=engine, rules=rules)
        self._heartbeats = HeartbeatStore(engine=engine)
        self._slots = Slots(name="slot", make=lambda name: self._new_slot(name, Lane.GPU, steps))
        self._downloads = downloads or Downloads(0, steps)
        self._download_slots = Slots(
            name="download slot", make=lambda name: self._new_slot(name, Lane.IO, self._downloads.tasks)
        )
        self._seen_nodes: tuple[float, list[GpuNode]] | None = None
        self._leave_at: float | None = None
        self._changing = threading.Lock()
        lease = times.flight.lease
        rescue = Rescue(store=RescueStore(engine=engine, rules=rules), lease_seconds=lease)
        self._loops = [
            Loop(name="capacity", interval=times.heartbeat, once=self._follow_capacity),
            *(self._outbox(lane) for lane in Lane if lane is Lane.GPU or self._downloads.slots),
            Loop(name="rescue", interval=lease / _RESCUES_PER_LEASE, once=rescue.once),
        ]

    def start(self) -> None:
        """Start the loops; the first turn of one of them makes the slots."""
        for loop in self._loops:
            loop.start()

    def check(self) -> None:
        """Raise ``RuntimeError`` when a slot or a loop has died."""
        dead = [loop.name for loop in self._loops if not loop.is_alive]
        dead += [*self._slots.dead(), *self._download_slots.dead()]
        if dead and self._leave_at is None:
            raise RuntimeError(f"dead: {', '.join(dead)}")

    def stop(self) -> None:
        """Claim nothing more, wait for the steps in flight, put back what is left when the time is up."""
        self._leave_at = time.monotonic() + self._times.drain
        for loop in self._loops:
            loop.end()
        with self._changing:
            for slots in (self._slots, self._download_slots):
                slots.end()
        for slots in (self._slots, self._download_slots):
            slots.join(self._times.drain + _JOIN_SECONDS)
        for loop in self._loops:
            loop.join(_JOIN_SECONDS)
        log.info("dispatcher stopped", extra={"dispatcher": self._id})

    def _must_leave(self) -> bool:
        return self._leave_at is not None and time.monotonic() >= self._leave_at

    def _follow_capacity(self) -> None:
        nodes = self._nodes()
        self._seen_nodes = (time.monotonic(), nodes)
        with self._changing:
            if self._leave_at is None:
                self._slots.resize(sum(node.gpus for node in nodes) + SURPLUS_SLOTS)
                self._download_slots.resize(self._downloads.slots)
        self._beat(nodes)

    def known_nodes(self) -> list[GpuNode] | None:
        """What the loop has seen last: a slot that asks a GCS which is away may wait for ever. None for nothing new."""
        if self._seen_nodes is None or time.monotonic() - self._seen_nodes[0] > self._times.heartbeat * _OLD_BEATS:
            return None
        return self._seen_nodes[1]

    def _outbox(self, lane: Lane) -> Loop:
        outbox = Outbox(claims=self._claims, queue=TicketQueue(redis=connect(self._redis_url), lane=lane), lane=lane)
        return Loop(name=f"outbox {lane}", interval=self._times.outbox, once=outbox.once)

    def _new_slot(self, name: str, lane: Lane, tasks: Tasks) -> Slot:
        flight = Flight(
            claims=self._claims,
            endings=self._endings,
            tasks=tasks,
            # A download needs no GPU: nobody is to say that there is none.
            nodes=self.known_nodes if lane is Lane.GPU else lambda: None,
            times=self._times.flight,
            must_leave=self._must_leave,
            new_token=self._new_token,
        )
        return Slot(
            name=name,
            lane=lane,
            redis_url=self._redis_url,
            claims=self._claims,
            flight=flight,
            lease_seconds=self._times.flight.lease,
            new_token=self._new_token,
        )

    def _beat(self, nodes: list[GpuNode]) -> None:
        loops = {loop.name: _seconds(loop.seconds_since) for loop in self._loops}
        slots = {"slots": len(self._slots), "download_slots": len(self._download_slots)}
        info = {**slots, "pid": os.getpid(), "loops": loops}
        self._heartbeats.beat(id=f"dispatcher:{self._id}", kind="dispatcher", node=self._node, info=info)
        for node in nodes:
            self._heartbeats.beat(id=f"node:{node.id}", kind="node", node=node.address, info={"gpus": node.gpus})


def _seconds(since: float | None) -> float | None:
    return None if since is None else round(since, 3)
