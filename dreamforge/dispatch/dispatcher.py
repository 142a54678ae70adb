"""The dispatcher: as many slots as the cluster has GPUs and one more, and the loops beside them."""

import itertools
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine

from dreamforge.dispatch.cluster import GpuNode
from dreamforge.dispatch.flight import Flight, FlightTimes, Kill, Submit
from dreamforge.dispatch.intake import Slot
from dreamforge.dispatch.loops import Loop
from dreamforge.dispatch.outbox import Outbox
from dreamforge.dispatch.rescue import Rescue
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


class Dispatcher:
    """Starts and stops the slots and loops; ``check`` tells whether all of them live."""

    def __init__(
        self,
        *,
        id: str,
        node: str,
        engine: Engine,
        redis_url: str,
        submit: Submit,
        kill: Kill,
        nodes: Callable[[], list[GpuNode]],
        times: DispatcherTimes,
        rules: RetryRules = RULES,
        new_token: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._id = id
        self._node = node
        self._redis_url = redis_url
        self._submit = submit
        self._kill = kill
        self._nodes = nodes
        self._times = times
        self._new_token = new_token
        self._claims = ClaimStore(engine=engine, rules=rules)
        self._endings = EndingStore(engine=engine, rules=rules)
        self._heartbeats = HeartbeatStore(engine=engine)
        self._numbers = itertools.count(1)
        self._slots: list[Slot] = []
        self._seen_nodes: tuple[float, list[GpuNode]] | None = None
        self._leave_at: float | None = None
        self._changing = threading.Lock()
        outbox = Outbox(claims=self._claims, queue=TicketQueue(redis=connect(redis_url), lane=Lane.GPU), lane=Lane.GPU)
        lease = times.flight.lease
        rescue = Rescue(store=RescueStore(engine=engine, rules=rules), lease_seconds=lease)
        self._loops = [
            Loop(name="capacity", interval=times.heartbeat, once=self._follow_capacity),
            Loop(name="outbox", interval=times.outbox, once=outbox.once),
            Loop(name="rescue", interval=lease / _RESCUES_PER_LEASE, once=rescue.once),
        ]

    def start(self) -> None:
        """Start the loops; the first turn of one of them makes the slots."""
        for loop in self._loops:
            loop.start()

    def check(self) -> None:
        """Raise ``RuntimeError`` when a slot or a loop has died."""
        dead = [loop.name for loop in self._loops if not loop.is_alive]
        dead += [f"slot {index}" for index, slot in enumerate(self._slots) if not (slot.is_alive or slot.is_ending)]
        if dead and self._leave_at is None:
            raise RuntimeError(f"dead: {', '.join(dead)}")

    def stop(self) -> None:
        """Claim nothing more, wait for the steps in flight, put back what is left when the time is up."""
        self._leave_at = time.monotonic() + self._times.drain
        for loop in self._loops:
            loop.end()
        with self._changing:
            for slot in self._slots:
                slot.end()
        for slot in self._slots:
            slot.join(self._times.drain + _JOIN_SECONDS)
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
                self._resize(sum(node.gpus for node in nodes) + SURPLUS_SLOTS)
        self._beat(nodes)

    def _known_nodes(self) -> list[GpuNode] | None:
        """What the loop has seen last: a slot that asks a GCS which is away may wait for ever."""
        if self._seen_nodes is None or time.monotonic() - self._seen_nodes[0] > self._times.heartbeat * _OLD_BEATS:
            return None
        return self._seen_nodes[1]

    def _resize(self, wanted: int) -> None:
        living = [slot for slot in self._slots if not slot.is_ending]
        for slot in living[wanted:]:
            slot.end()
        for _ in range(wanted - len(living)):
            slot = self._new_slot()
            slot.start()
            self._slots.append(slot)
        self._slots = [slot for slot in self._slots if slot.is_alive or not slot.is_ending]

    def _new_slot(self) -> Slot:
        flight = Flight(
            claims=self._claims,
            endings=self._endings,
            submit=self._submit,
            kill=self._kill,
            nodes=self._known_nodes,
            times=self._times.flight,
            must_leave=self._must_leave,
            new_token=self._new_token,
        )
        return Slot(
            name=f"slot-{next(self._numbers)}",
            lane=Lane.GPU,
            redis_url=self._redis_url,
            claims=self._claims,
            flight=flight,
            lease_seconds=self._times.flight.lease,
            new_token=self._new_token,
        )

    def _beat(self, nodes: list[GpuNode]) -> None:
        loops = {loop.name: _seconds(loop.seconds_since) for loop in self._loops}
        info = {"slots": len(self._slots), "pid": os.getpid(), "loops": loops}
        self._heartbeats.beat(id=f"dispatcher:{self._id}", kind="dispatcher", node=self._node, info=info)
        for node in nodes:
            self._heartbeats.beat(id=f"node:{node.id}", kind="node", node=node.address, info={"gpus": node.gpus})


def _seconds(since: float | None) -> float | None:
    return None if since is None else round(since, 3)
