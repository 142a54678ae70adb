"""The dispatcher of a replica: what it is made of."""

import logging
from functools import partial

import ray

from deployments import download, step
from deployments.loopback import keep_to_loopback
from deployments.resources import database_url, redis_url
from dreamforge import settings as environment
from dreamforge import telemetry
from dreamforge.dispatch.affinity import Affinity
from dreamforge.dispatch.cluster import gpu_nodes
from dreamforge.dispatch.dispatcher import Dispatcher, DispatcherTimes, Downloads
from dreamforge.dispatch.flight import FlightTimes, Tasks
from dreamforge.jobs.retry import RetryPolicy
from dreamforge.settings import Settings
from dreamforge.store.endings import RetryRules
from dreamforge.store.engine import open_engine
from dreamforge.store.model_nodes import ModelNodeStore

log = logging.getLogger(__name__)


class RunningDispatcher:
    """A dispatcher at work in this process. ``longest_drain``: seconds that Serve leaves it to end what it has."""

    def __init__(self, *, longest_drain: float, database_connections: int) -> None:
        telemetry.install()
        keep_to_loopback()
        settings = environment.load()
        self._engine = open_engine(
            database_url(settings), application="dreamforge-dispatcher", pool_size=database_connections
        )
        affinity = Affinity(
            store=ModelNodeStore(engine=self._engine), nodes=lambda: self._dispatcher.known_nodes() or ()
        )
        self._dispatcher = Dispatcher(
            id=ray.get_runtime_context().get_actor_id() or "dispatcher",
            node=ray.util.get_node_ip_address(),
            engine=self._engine,
            redis_url=redis_url(settings),
            steps=Tasks(partial(step.submit, prefer=affinity.choose), step.kill),
            nodes=gpu_nodes,
            times=_times(settings, longest_drain=longest_drain),
            downloads=Downloads(settings.download_slots, Tasks(download.submit, download.kill)),
            rules=RetryRules(policy=_policy(settings)),
        )
        self._dispatcher.start()

    def check(self) -> None:
        """Raise when a slot or a loop has died."""
        self._dispatcher.check()

    def stop(self) -> None:
        """Drain, put back what is left, and let go of the database."""
        self._dispatcher.stop()
        self._engine.dispose()


def _policy(settings: Settings) -> RetryPolicy:
    return RetryPolicy(
        failures=settings.retry_failures,
        crashes=settings.retry_crashes,
        rescues=settings.retry_rescues,
        first_pause=settings.retry_pause,
    )


def _times(settings: Settings, *, longest_drain: float) -> DispatcherTimes:
    if settings.drain_timeout > longest_drain:
        log.warning("DREAMFORGE_DRAIN_TIMEOUT is cut: Serve waits no longer", extra={"seconds": longest_drain})
    return DispatcherTimes(
        flight=FlightTimes(
            lease=settings.lease_seconds,
            lease_renew=settings.lease_renew_seconds,
            start_timeout=settings.start_timeout,
        ),
        heartbeat=settings.heartbeat_seconds,
        outbox=settings.outbox_seconds,
        drain=max(0.0, min(settings.drain_timeout, longest_drain)),
    )
