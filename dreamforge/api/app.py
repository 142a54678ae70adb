"""The FastAPI application, over stores that are handed to it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from dreamforge import __version__
from dreamforge.api.documentation import install_documentation
from dreamforge.api.errors import install_error_handlers
from dreamforge.api.hosts import HostMiddleware
from dreamforge.api.metrics import Metrics
from dreamforge.api.openapi import install_document
from dreamforge.api.readiness import ReadinessChecks
from dreamforge.api.request_id import RequestIdMiddleware
from dreamforge.api.routes import admin, artifacts, events, health, jobs, models
from dreamforge.api.state import ApiState
from dreamforge.api.upgrades import UpgradeMiddleware
from dreamforge.store.statistics import StatisticsStore


def create_app(state: ApiState) -> FastAPI:
    """The application. It closes ``state`` when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        await state.close()

    app = FastAPI(
        title="Dream Forge",
        version=__version__,
        summary="Self-hosted image generation that loses nothing.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # An address has one spelling; a redirect would be built from the `Host` of the request.
        redirect_slashes=False,
    )
    app.state.api = state
    app.state.readiness = ReadinessChecks(state)
    app.state.metrics = Metrics(StatisticsStore(engine=state.engine), alive_seconds=state.rules.node_silence)
    app.add_middleware(UpgradeMiddleware)
    app.add_middleware(HostMiddleware, allowed=state.rules.allowed_hosts)
    # The outermost: whatever answers, the id is there.
    app.add_middleware(RequestIdMiddleware, adds_header=not state.rules.server_adds_request_id)
    install_error_handlers(app)
    for router in (jobs.router, artifacts.router, events.router, models.router, admin.router, health.router):
        app.include_router(router)
    install_documentation(app)
    install_document(app)
    return app
