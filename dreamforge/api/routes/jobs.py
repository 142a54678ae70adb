"""`/v1/jobs`."""

import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from dreamforge.api.body import StrictRoute
from dreamforge.api.cursor import decode_cursor, encode_cursor
from dreamforge.api.errors import error_responses
from dreamforge.api.request_id import request_id_of
from dreamforge.api.schemas import ArtifactList, CreateJob, Job, LogLine
from dreamforge.api.state import ApiState, State
from dreamforge.api.submit import submit_job
from dreamforge.api.views import artifact_view, job_view, log_line
from dreamforge.errors import NotFound
from dreamforge.store.events import EventFilter
from dreamforge.store.jobs import JobRecord

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

NDJSON = "application/x-ndjson"


@router.post(
    "",
    status_code=201,
    operation_id="create_job",
    summary="Create a job",
    responses=error_responses(400, 413, 415, 422, 503),
)
async def create_job(body: CreateJob, request: Request, response: Response, state: State) -> Job:
    """Accept a job. It is in Postgres before the answer leaves, and ends exactly once."""
    record = await submit_job(body, state, request_id=request_id_of(request))
    view = job_view(record)
    response.headers["Location"] = view.links.self
    return view


@router.get("/{job_id}", operation_id="get_job", summary="Get a job", responses=error_responses(404, 503))
async def get_job(job_id: str, state: State) -> Job:
    """The job as it is now."""
    return job_view(await _find(job_id, state))


@router.get(
    "/{job_id}/artifacts",
    operation_id="list_artifacts",
    summary="List a job's images",
    responses=error_responses(400, 404, 422, 503),
)
async def list_artifacts(
    job_id: str,
    state: State,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> ArtifactList:
    """The images that are finished so far, in order, each with a presigned URL."""
    record = await _find(job_id, state)
    place = decode_cursor(cursor, length=2) if cursor else None
    page = await state.jobs.artifacts(record.job.id, after=(place[0], place[1]) if place else None, limit=limit)
    views = [artifact_view(row.ArtifactRow, blobs=state.blobs, ttl=state.rules.presign_ttl) for row in page.artifacts]
    last = page.artifacts[-1] if page.more else None
    next_cursor = encode_cursor(last.position, last.ArtifactRow.item_index) if last else None
    return ArtifactList(items=views, next_cursor=next_cursor)


@router.get(
    "/{job_id}/logs",
    operation_id="get_job_logs",
    summary="Read a job's events",
    response_class=StreamingResponse,
    responses={200: {"content": {NDJSON: {"schema": LogLine.model_json_schema()}}}, **error_responses(404, 422, 503)},
)
async def get_job_logs(
    job_id: str,
    state: State,
    after: Annotated[int, Query(ge=0, le=2**62, description="Only events behind this `seq`.")] = 0,
    level: Annotated[list[Literal["debug", "info", "warning", "error"]] | None, Query()] = None,
    code: Annotated[list[str] | None, Query(max_length=50)] = None,
    item_index: Annotated[int | None, Query(ge=0, le=99)] = None,
) -> StreamingResponse:
    """Every event so far, one JSON object a line, oldest first."""
    record = await _find(job_id, state)
    wanted = EventFilter(after=after, levels=tuple(level or ()), codes=tuple(code or ()), item_index=item_index)
    return StreamingResponse(_lines(record.job.id, wanted, state), media_type=NDJSON)


async def _lines(job_id: uuid.UUID, wanted: EventFilter, state: ApiState) -> AsyncIterator[str]:
    async for event in state.jobs.events(job_id, wanted):
        yield log_line(event).model_dump_json() + "\n"


async def _find(job_id: str, state: ApiState) -> JobRecord:
    try:
        record = await state.jobs.find(uuid.UUID(job_id))
    except ValueError:
        record = None
    if record is None:
        raise NotFound("There is no such job.")
    return record
