"""`/healthz` and `/readyz`."""

from fastapi import APIRouter, Response

from dreamforge.api.readiness import check_readiness
from dreamforge.api.schemas import Liveness, Readiness
from dreamforge.api.state import State

router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="get_liveness", summary="Is the process alive?")
async def healthz() -> Liveness:
    """Answers without asking anybody."""
    return Liveness()


@router.get(
    "/readyz",
    operation_id="get_readiness",
    summary="Is the service ready?",
    responses={503: {"model": Readiness}},
)
async def readyz(response: Response, state: State) -> Readiness:
    """One line for each dependency; 503 when one that is needed is away."""
    readiness = await check_readiness(state)
    if readiness.status == "unavailable":
        response.status_code = 503
    return readiness
