"""The FastAPI application, over stores that are handed to it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from dreamforge import __version__
from dreamforge.api.errors import install_error_handlers
from dreamforge.api.request_id import RequestIdMiddleware
from dreamforge.api.routes import events, health, jobs, models
from dreamforge.api.state import ApiState


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
    )
    app.state.api = state
    app.add_middleware(RequestIdMiddleware, adds_header=not state.rules.server_adds_request_id)
    install_error_handlers(app)
    for router in (jobs.router, events.router, models.router, health.router):
        app.include_router(router)
    return app
