"""The dispatcher as a Ray Serve application without a route."""

import asyncio
import logging

import ray
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from deployments.loopback import keep_to_loopback
from deployments.placement import on_head
from deployments.resources import database_url, redis_url
from deployments.step import submit
from dreamforge import settings as environment
from dreamforge import telemetry
from dreamforge.dispatch.cluster import gpu_nodes
from dreamforge.dispatch.dispatcher import Dispatcher, DispatcherTimes
from dreamforge.dispatch.flight import FlightTimes
from dreamforge.settings import Settings
from dreamforge.store.engine import open_engine

log = logging.getLogger(__name__)

_LEAVE_SECONDS = 6.0
"""What is left to a dispatcher after the drain, to put steps back."""


class DispatcherArguments(BaseModel):
    """Arguments of the application in ``serve_config.yaml``."""

    model_config = ConfigDict(extra="forbid")

    graceful_shutdown_timeout_s: float = Field(default=14.0, gt=0)
    """Seconds Serve waits for the drain: 6 more than `DREAMFORGE_DRAIN_TIMEOUT`, which is cut otherwise."""
    database_connections: int = Field(default=16, ge=2)
    """Threads of the dispatcher that may speak to Postgres at once."""


class DispatcherReplica:
    """Holds one dispatcher for as long as the replica lives."""

    def __init__(self, arguments: DispatcherArguments) -> None:
        telemetry.install()
        keep_to_loopback()
        settings = environment.load()
        self._engine = open_engine(
            database_url(settings), application="dreamforge-dispatcher", pool_size=arguments.database_connections
        )
        self._dispatcher = Dispatcher(
            id=ray.get_runtime_context().get_actor_id() or "dispatcher",
            node=ray.util.get_node_ip_address(),
            engine=self._engine,
            redis_url=redis_url(settings),
            submit=submit,
            nodes=gpu_nodes,
            times=_times(settings, longest_drain=arguments.graceful_shutdown_timeout_s - _LEAVE_SECONDS),
        )
        self._dispatcher.start()

    def check_health(self) -> None:
        """Raise when a slot or a loop has died: Serve then replaces the replica."""
        self._dispatcher.check()

    async def __del__(self) -> None:
        await asyncio.to_thread(self._dispatcher.stop)
        self._engine.dispose()


def build(arguments: DispatcherArguments) -> Application:
    """The application, for `serve_config.yaml`."""
    deploy = serve.deployment(
        name="Dispatcher",
        num_replicas=1,
        ray_actor_options=on_head(),
        graceful_shutdown_timeout_s=arguments.graceful_shutdown_timeout_s,
        health_check_period_s=5,
        health_check_timeout_s=10,
    )
    return deploy(DispatcherReplica).bind(arguments)


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
