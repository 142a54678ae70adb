"""`/healthz`, `/readyz` and `/metrics`."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from dreamforge.api.errors import RETRY_AFTER_SECONDS
from dreamforge.api.metrics import Metrics
from dreamforge.api.readiness import ReadinessChecks
from dreamforge.api.schemas import Liveness, Readiness

router = APIRouter(tags=["health"])


# Monitors ask with HEAD. By HTTP it is GET without the body, and needs no lines of its own in the document.
@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", operation_id="get_liveness", summary="Is the process alive?")
async def healthz() -> Liveness:
    """Answers without asking anybody. So does `HEAD`, without a body."""
    return Liveness()


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    operation_id="get_readiness",
    summary="Is the service ready?",
    responses={503: {"model": Readiness, "description": "Something that is required is away"}},
)
async def readyz(request: Request, response: Response) -> Readiness:
    """One line for each dependency; 503 when one that is needed is away. `HEAD` answers with the same status."""
    checks: ReadinessChecks = request.app.state.readiness
    readiness = await checks.check()
    if readiness.status == "unavailable":
        response.status_code = 503
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return readiness


@router.get("/metrics", operation_id="get_metrics", summary="Figures for Prometheus", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Jobs, steps, the queue, images, heartbeats: counted in Postgres, and so of the whole service.

    A replica's figures of what goes on are 2 s old at most, and those of what is over as old as
    `dreamforge_totals_age_seconds` says, 60 s as a rule: so far may two replicas differ.

    Prometheus' text format, or OpenMetrics for those who accept it. While the database is away: 200, with
    `dreamforge_database_up` 0 and without the figures.
    """
    figures: Metrics = request.app.state.metrics
    body, content_type = await figures.exposition(request.headers.get("Accept", ""))
    return Response(body, headers={"Content-Type": content_type})
