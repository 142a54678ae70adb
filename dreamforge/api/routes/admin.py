"""`/v1/admin`: what changes the service itself."""

from fastapi import APIRouter, Request, Response

from dreamforge.api import idempotency
from dreamforge.api.body import StrictRoute
from dreamforge.api.errors import error_responses
from dreamforge.api.idempotency import key_of
from dreamforge.api.model_downloads import DownloadModel
from dreamforge.api.openapi import with_headers
from dreamforge.api.request_id import request_id_of
from dreamforge.api.schemas import Job
from dreamforge.api.state import State
from dreamforge.api.submit import submit_download
from dreamforge.api.views import job_view

router = APIRouter(prefix="/v1/admin", tags=["models"], route_class=StrictRoute)


@router.post(
    "/models",
    status_code=201,
    operation_id="download_model",
    summary="Download a model",
    responses={201: with_headers("Idempotency-Replayed"), **error_responses(400, 409, 413, 415, 422, 503)},
    openapi_extra={"parameters": [idempotency.PARAMETER]},
)
async def download_model(body: DownloadModel, request: Request, response: Response, state: State) -> Job:
    """Have the service download a model: a job of type `model_download`, like any other but that it draws nothing.

    It is followed, cancelled, retried and deleted as others are; `progress` counts bytes, `model.fetching` tells of
    them, and `model.installed` of the model at the end, which can be used from then on. A retry goes on where the
    download broke off.
    """
    key = await key_of(request, ttl=state.rules.idempotency_ttl)
    submitted = await submit_download(body, state, request_id=request_id_of(request), key=key)
    if submitted.is_replay:
        response.headers["Idempotency-Replayed"] = "true"
    view = job_view(submitted.record)
    response.headers["Location"] = view.links.self
    return view
