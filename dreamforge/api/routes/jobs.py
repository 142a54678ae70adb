"""`/v1/jobs`."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import AwareDatetime, StringConstraints

from dreamforge.api.body import StrictRoute
from dreamforge.api.cursor import (
    decode_artifact_cursor,
    decode_job_cursor,
    encode_artifact_cursor,
    encode_job_cursor,
)
from dreamforge.api.errors import error_responses
from dreamforge.api.model_reference import known_models
from dreamforge.api.request_id import request_id_of
from dreamforge.api.schemas import ArtifactList, CreateJob, Job, JobList
from dreamforge.api.state import ApiState, State
from dreamforge.api.submit import submit_job
from dreamforge.api.views import artifact_view, job_view
from dreamforge.errors import NotFound
from dreamforge.jobs.cancellation import CancelAnswer
from dreamforge.jobs.job import JobStatus, JobType
from dreamforge.store.jobs import JobRecord
from dreamforge.store.listing import JobFilter, JobPlace

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

Limit = Annotated[int, Query(ge=1, le=200, description="Most items of a page.")]
Cursor = Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")]
# Postgres knows no NUL in a text.
StorableText = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
ModelReference = Annotated[
    StorableText | None, Query(description="An id, a name, or name@version.", examples=["sdxl-tiny"])
]


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


@router.get("", operation_id="list_jobs", summary="List jobs", responses=error_responses(400, 422, 503))
async def list_jobs(
    state: State,
    status: Annotated[list[JobStatus] | None, Query(max_length=20, description="Repeat it for several.")] = None,
    type: Annotated[JobType | None, Query()] = None,
    model_id: ModelReference = None,
    created_after: Annotated[AwareDatetime | None, Query(description="Exclusive.")] = None,
    created_before: Annotated[AwareDatetime | None, Query(description="Exclusive.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> JobList:
    """Jobs, newest first. Pages skip and repeat nothing while jobs are added."""
    wanted = JobFilter(
        statuses=tuple(status or ()),
        type=type,
        model_ids=await known_models(model_id, state) if model_id else (),
        created_after=created_after,
        created_before=created_before,
    )
    page = await state.jobs.list(wanted, after=decode_job_cursor(cursor) if cursor else None, limit=limit)
    last = page.jobs[-1].job if page.more else None
    next_cursor = encode_job_cursor(JobPlace(last.created_at, last.id)) if last else None
    return JobList(items=[job_view(record) for record in page.jobs], next_cursor=next_cursor)


@router.get("/{job_id}", operation_id="get_job", summary="Get a job", responses=error_responses(404, 503))
async def get_job(job_id: str, state: State) -> Job:
    """The job as it is now."""
    return job_view(await _find(job_id, state))


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    operation_id="cancel_job",
    summary="Cancel a job",
    responses={200: {"model": Job, "description": "The job was over already"}, **error_responses(404, 503)},
)
async def cancel_job(job_id: str, response: Response, state: State) -> Job:
    """Ask for the job's end, as often as you like. Images that are finished stay; the answer is the job as it is now.

    A job that nobody runs is `cancelled` at once. One that runs is `cancelling` until its runner has stopped, and
    ends as `succeeded` or `failed` when that came first.
    """
    record = await _find(job_id, state)
    answer = await state.jobs.cancel(record.job.id)
    if answer is CancelAnswer.OVER:
        response.status_code = 200
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
    limit: Limit = 50,
    cursor: Cursor = None,
) -> ArtifactList:
    """The images that are finished so far, in order, each with a presigned URL."""
    record = await _find(job_id, state)
    place = decode_artifact_cursor(cursor) if cursor else None
    page = await state.jobs.artifacts(record.job.id, after=place, limit=limit)
    views = [artifact_view(row.ArtifactRow, blobs=state.blobs, ttl=state.rules.presign_ttl) for row in page.artifacts]
    last = page.artifacts[-1] if page.more else None
    next_cursor = encode_artifact_cursor(last.position, last.ArtifactRow.item_index) if last else None
    return ArtifactList(items=views, next_cursor=next_cursor)


async def _find(job_id: str, state: ApiState) -> JobRecord:
    try:
        record = await state.jobs.find(uuid.UUID(job_id))
    except ValueError:
        record = None
    if record is None:
        raise NotFound("There is no such job.")
    return record
