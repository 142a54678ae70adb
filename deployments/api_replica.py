"""A replica of the API: what it is made of."""

from fastapi import FastAPI

from deployments.leaving import before_leaving
from deployments.loopback import keep_to_loopback
from deployments.resources import database_url, open_blobs, redis_url
from dreamforge import settings as environment
from dreamforge import telemetry
from dreamforge.api.app import create_app
from dreamforge.api.garbage import leave_out_what_is_there
from dreamforge.api.hosts import names_of_this_machine
from dreamforge.api.state import ApiRules, ApiState
from dreamforge.api.tail import StreamRules
from dreamforge.store.engine import open_async_engine


def on_replica(*, database_connections: int) -> FastAPI:
    """The application, in the process of a replica that Serve has just started."""
    keep_to_loopback()
    app = build_app(database_connections=database_connections)
    before_leaving(app.state.api.leave)
    leave_out_what_is_there()
    return app


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
                takes_downloads=settings.download_slots > 0,
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
