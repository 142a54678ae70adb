"""`/metrics`: the service's figures for Prometheus, counted in Postgres when they are asked for.

A scrape meets any replica, so nothing here is counted in the process; but a replica keeps what it has counted for a
while, and two may be as far apart as that. The counts of what is stored go down when jobs
are deleted: they are gauges. While the database is away the answer is still 200, with `dreamforge_database_up` 0 and
none of the others, so that an alert can tell "the database is away" from "the service is away".
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from dreamforge import __version__
from dreamforge.errors import DatabaseUnavailable
from dreamforge.jobs.job import Lane
from dreamforge.store.heartbeats import Heartbeat
from dreamforge.store.statistics import Backlog, LiveFigures, StatisticsStore, TotalFigures

log = logging.getLogger(__name__)

LIVE_SECONDS = 2.0
"""How old a replica's figures of what goes on may be."""
TOTAL_SECONDS = 60.0
"""How old its figures of the history may be, and how long after a count that failed the next one begins: they cost
more, and move less."""
OLDEST_TOTAL_SECONDS = 600.0
"""How old the last figures of the history are when they are no longer told, for want of newer ones."""
PATIENCE = 4.0
"""Seconds for all queries of a scrape; Prometheus gives up after 10."""

T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """The figures of one scrape: of what goes on (None: the database is away), and the last known of the history.

    ``totals_age``: seconds since they were counted.
    """

    live: LiveFigures | None
    totals: TotalFigures | None
    totals_age: float


_MEMORY_PHASES = {"before": "gpu_mem_used_before", "peak": "peak_gpu_mem_used", "after": "gpu_mem_used_after"}


class Metrics:
    """The figures of one replica, each kept for a while. However many ask, one counts.

    ``alive_seconds``: how old the heartbeat of something that is alive may be.
    """

    def __init__(self, statistics: StatisticsStore, *, alive_seconds: float) -> None:
        self._live = _Kept(statistics.live, seconds=LIVE_SECONDS)
        self._totals = _Kept(statistics.totals, seconds=TOTAL_SECONDS, rest=TOTAL_SECONDS)
        self._alive_seconds = alive_seconds

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Body and content type: OpenMetrics for those who accept it, else Prometheus' text."""
        live, _ = await asyncio.gather(self._live.get(), self._totals.get())
        registry = CollectorRegistry()
        age = self._totals.age
        totals = self._totals.last if age <= OLDEST_TOTAL_SECONDS else None
        snapshot = Snapshot(live=live, totals=totals, totals_age=age)
        registry.register(_Figures(snapshot, alive_seconds=self._alive_seconds))
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):
            # It compares any version that it is given with numbers.
            encode, content_type = choose_encoder("")
        return encode(registry), content_type


class _Kept(Generic[T]):
    """A value that is counted anew once it is older than ``seconds``. A count that takes long goes on for the next.

    ``rest``: seconds from the beginning of a count that failed to the next one.
    """

    def __init__(self, count: Callable[[], Coroutine[None, None, T]], *, seconds: float, rest: float = 0.0) -> None:
        self._count = count
        self._seconds = seconds
        self._rest = rest
        self._counting: asyncio.Task[T | None] | None = None
        self._due_at = 0.0
        self._counted_at = 0.0
        self.last: T | None = None

    @property
    def age(self) -> float:
        """Seconds since the counting of ``last`` began."""
        return time.monotonic() - self._counted_at

    async def get(self) -> T | None:
        """The value, or None when it does not come in time or the database is away."""
        if self._counting is None or (self._counting.done() and time.monotonic() >= self._due_at):
            self._counting = asyncio.create_task(self._keep())
            # One that ends after everybody has gone is nobody's error.
            self._counting.add_done_callback(lambda task: task.cancelled() or task.exception())
        counting = self._counting
        done, _ = await asyncio.wait({counting}, timeout=PATIENCE)
        return counting.result() if done else None

    async def _keep(self) -> T | None:
        began = time.monotonic()
        self._due_at = began + self._seconds
        try:
            value = await self._count()
        except DatabaseUnavailable:
            log.warning("no figures: the database does not answer")
            self._due_at = began + self._rest
            return None
        self.last, self._counted_at = value, began
        return value


class _Figures(Collector):
    def __init__(self, snapshot: Snapshot, *, alive_seconds: float) -> None:
        self._snapshot = snapshot
        self._alive_seconds = alive_seconds

    def collect(self) -> Iterator[Metric]:
        """Every family of metrics."""
        live, totals = self._snapshot.live, self._snapshot.totals
        yield InfoMetricFamily("dreamforge_build", "The version that answers.", {"version": __version__})
        yield GaugeMetricFamily(
            "dreamforge_database_up", "1 when the database has told these figures.", float(live is not None)
        )
        if live is None:
            return
        jobs, steps = dict(live.jobs), dict(live.steps)
        if totals is not None:
            jobs.update(totals.jobs)
            steps.update(totals.steps)
            yield _gauge("dreamforge_failed_steps", "Stored failed steps by code.", ["code"], _by_one(totals.failures))
            yield GaugeMetricFamily("dreamforge_artifacts", "Stored images.", totals.artifacts)
            yield GaugeMetricFamily("dreamforge_artifacts_bytes", "Their size in bytes.", totals.artifact_bytes)
            yield GaugeMetricFamily(
                "dreamforge_totals_age_seconds",
                "How long ago this replica counted what is over, and images.",
                self._snapshot.totals_age,
            )
        yield _gauge("dreamforge_jobs", "Stored jobs by status.", ["status"], _by_one(jobs))
        yield _gauge("dreamforge_steps", "Stored steps by lane and status.", ["lane", "status"], steps.items())
        yield from _of_backlog(live.backlog)
        gpus = [beat for beat in live.heartbeats if beat.kind == "gpu"]
        others = [beat for beat in live.heartbeats if beat.kind != "gpu"]
        yield from _of_heartbeats(others, alive_seconds=self._alive_seconds)
        yield from _of_gpus(gpus)


def _of_backlog(backlog: Mapping[Lane, Backlog]) -> Iterator[Metric]:
    lanes = {lane: backlog.get(lane, Backlog(0, 0.0)) for lane in Lane}
    depth = {(str(lane),): found.steps for lane, found in lanes.items()}
    age = {(str(lane),): found.oldest_seconds for lane, found in lanes.items()}
    yield _gauge("dreamforge_due_steps", "Steps that wait for a worker.", ["lane"], depth.items())
    yield _gauge(
        "dreamforge_oldest_due_step_age_seconds", "How long the oldest of them has waited.", ["lane"], age.items()
    )


def _of_heartbeats(heartbeats: Iterable[Heartbeat], *, alive_seconds: float) -> Iterator[Metric]:
    """Of several processes of one kind on one node, the one that was seen last."""
    newest: dict[tuple[str, str], Heartbeat] = {}
    for beat in sorted(heartbeats, key=lambda beat: beat.age_seconds):
        newest.setdefault((beat.kind, beat.node), beat)
    ages = {place: beat.age_seconds for place, beat in newest.items()}
    yield _gauge(
        "dreamforge_heartbeat_age_seconds",
        "Time since a dispatcher or a GPU node was last seen, for an hour.",
        ["kind", "node"],
        ages.items(),
    )
    for kind, name, info, what in (
        ("dispatcher", "dreamforge_dispatcher_slots", "slots", "Steps that a dispatcher can look after at once."),
        ("node", "dreamforge_node_gpus", "gpus", "GPUs of a node."),
    ):
        found = {
            (node,): float(beat.info.get(info, 0))
            for (of, node), beat in newest.items()
            if of == kind and beat.age_seconds <= alive_seconds
        }
        yield _gauge(name, what, ["node"], found.items())


def _of_gpus(heartbeats: Iterable[Heartbeat]) -> Iterator[Metric]:
    """Of the last step on each GPU of the last hour."""
    healthy: dict[tuple[str, ...], float] = {}
    used: dict[tuple[str, ...], float] = {}
    for beat in heartbeats:
        place = (beat.node, str(beat.info.get("gpu_uuid")))
        healthy[place] = float(bool(beat.info.get("is_healthy", True)))
        for phase, name in _MEMORY_PHASES.items():
            if (size := beat.info.get(name)) is not None:
                used[*place, phase] = float(size)
    yield _gauge(
        "dreamforge_gpu_healthy",
        "0 while memory of a step has not come back, and nobody is given the GPU.",
        ["node", "gpu"],
        healthy.items(),
    )
    yield _gauge(
        "dreamforge_gpu_memory_bytes",
        "Memory in use around the last step: before, at its peak (by torch), after.",
        ["node", "gpu", "phase"],
        used.items(),
    )


def _by_one(values: Mapping[Any, float]) -> Iterable[tuple[tuple[str], float]]:
    return (((str(label),), value) for label, value in values.items())


def _gauge(
    name: str, what: str, labels: list[str], values: Iterable[tuple[tuple[str, ...], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, what, labels=labels)
    for label, value in values:
        family.add_metric([str(part) for part in label], value)
    return family
