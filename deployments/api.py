"""The HTTP API as a Ray Serve application.

Serve imports this module in a process of its own to learn what to deploy: what only replicas need they import.
"""

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from deployments.placement import on_head


class ApiArguments(BaseModel):
    """Arguments of the application in ``serve_config.yaml``."""

    model_config = ConfigDict(extra="forbid")

    num_replicas: int = Field(default=2, ge=1)
    """Two at least: when one dies the other answers."""
    max_ongoing_requests: int = Field(default=4000, ge=100)
    """Each open stream holds one; Serve's own default is 5."""
    database_connections: int = Field(default=10, ge=1)
    """For each replica."""


def build(arguments: ApiArguments) -> Application:
    """The application, for `serve_config.yaml`."""

    def on_replica() -> FastAPI:
        from deployments import api_replica  # noqa: PLC0415 - see above

        return api_replica.on_replica(database_connections=arguments.database_connections)

    deploy = serve.deployment(
        name="Api",
        num_replicas=arguments.num_replicas,
        max_ongoing_requests=arguments.max_ongoing_requests,
        ray_actor_options=on_head(),
        graceful_shutdown_timeout_s=5,
        health_check_period_s=5,
    )
    return deploy(serve.ingress(on_replica)()).bind()
