"""The dispatcher as a Ray Serve application without a route.

Serve imports this module in a process of its own to learn what to deploy: what only the replica needs it imports.
"""

import asyncio

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from deployments.placement import on_head

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
        from deployments.dispatcher_replica import RunningDispatcher  # noqa: PLC0415 - see above

        self._running = RunningDispatcher(
            longest_drain=arguments.graceful_shutdown_timeout_s - _LEAVE_SECONDS,
            database_connections=arguments.database_connections,
        )

    def check_health(self) -> None:
        """Raise when a slot or a loop has died: Serve then replaces the replica."""
        self._running.check()

    async def __del__(self) -> None:
        await asyncio.to_thread(self._running.stop)


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
