"""The HTTP API as a Ray Serve application."""

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from deployments.leaving import before_leaving
from deployments.loopback import keep_to_loopback
from deployments.placement import on_head
from deployments.resources import database_url, open_blobs, redis_url
from dreamforge import settings as environment
from dreamforge import telemetry
from dreamforge.api.app import create_app
from dreamforge.api.hosts import names_of_this_machine
from dreamforge.api.state import ApiRules, ApiState
from dreamforge.api.tail import StreamRules
from dreamforge.store.engine import open_async_engine


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
        keep_to_loopback()
        app = build_app(database_connections=arguments.database_connections)
        before_leaving(app.state.api.leave)
        return app

    deploy = serve.deployment(
        name="Api",
        num_replicas=arguments.num_replicas,
        max_ongoing_requests=arguments.max_ongoing_requests,
        ray_actor_options=on_head(),
        graceful_shutdown_timeout_s=5,
        health_check_period_s=5,
    )
    return deploy(serve.ingress(on_replica)()).bind()


def build_app(*, database_connections: int = 10) -> FastAPI:
    """The FastAPI application over the services that the environment names."""
    telemetry.install()
    settings = environment.load()
    return create_app(
        ApiState(
            engine=open_async_engine(
                database_url(settings), application="dreamforge-api", pool_size=database_connections
            ),
            blobs=open_blobs(settings),
            redis_url=redis_url(settings),
            rules=ApiRules(
                redis_outage=settings.redis_outage,
                max_body=settings.max_body,
                presign_ttl=settings.presign_ttl,
                heartbeat_seconds=settings.heartbeat_seconds,
                idempotency_ttl=settings.idempotency_ttl,
                server_adds_request_id=True,
                allowed_hosts=(*names_of_this_machine(settings.host), *settings.allowed_hosts),
                streams=StreamRules(
                    poll=settings.stream_poll_seconds,
                    idle=settings.stream_idle_seconds,
                    keep_alive=settings.stream_keep_alive_seconds,
                    stall=settings.stream_stall_seconds,
                ),
            ),
        )
    )
