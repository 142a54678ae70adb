"""`/v1/jobs`."""

import logging
import re
import uuid
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import AwareDatetime, BeforeValidator, StringConstraints
from pydantic_core import PydanticCustomError

from dreamforge.api import idempotency, preference
from dreamforge.api.body import StrictRoute
from dreamforge.api.cursor import (
    decode_artifact_cursor,
    decode_job_cursor,
    encode_artifact_cursor,
    encode_job_cursor,
)
from dreamforge.api.errors import error_responses
from dreamforge.api.idempotency import key_of
from dreamforge.api.model_reference import known_models
from dreamforge.api.openapi import with_headers
from dreamforge.api.preference import wait_of
from dreamforge.api.request_id import request_id_of
from dreamforge.api.schemas import ArtifactList, CreateJob, Job, JobList
from dreamforge.api.state import ApiState, State
from dreamforge.api.submit import retry_job, submit_job
from dreamforge.api.views import artifact_view, job_view
from dreamforge.errors import DatabaseUnavailable, NotFound, StorageUnavailable
from dreamforge.jobs.cancellation import CancelAnswer
from dreamforge.jobs.identity import uuid_of
from dreamforge.jobs.job import JobStatus, JobType
from dreamforge.store.engine import in_time
from dreamforge.store.jobs import JobRecord
from dreamforge.store.listing import JobFilter, JobPlace

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

_NO_JOB = "There is no such job."
Limit = Annotated[int, Query(ge=1, le=200, description="Most items of a page.")]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before.")]
# Postgres knows no NUL in a text.
StorableText = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
ErrorCodes = Annotated[
    list[StorableText] | None,
    Query(max_length=20, description="Only what failed with one of these.", examples=[["attempts_exhausted"]]),
]
ModelReference = Annotated[
    StorableText | None, Query(description="An id, a name, or name@version.", examples=["sdxl-tiny"])
]
_DATE_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def _as_rfc_3339_has_it(text: object) -> object:
    # Pydantic also takes seconds since 1970, and much that ISO 8601 allows.
    if not isinstance(text, str) or not _DATE_TIME.fullmatch(text):
        raise PydanticCustomError("date_time", "must be a date-time of RFC 3339, like 2026-03-01T13:00:00Z")
    return text


Time = Annotated[
    Annotated[AwareDatetime, BeforeValidator(_as_rfc_3339_has_it)] | None,
    Query(description="Exclusive; a date-time of RFC 3339.", examples=["2026-03-01T13:00:00Z"]),
]


@router.post(
    "",
    status_code=201,
    operation_id="create_job",
    summary="Create a job",
    responses={
        201: with_headers("Idempotency-Replayed", "Preference-Applied"),
        **error_responses(400, 413, 415, 422, 503),
    },
    openapi_extra={"parameters": [idempotency.PARAMETER, preference.PARAMETER]},
)
async def create_job(body: CreateJob, request: Request, response: Response, state: State) -> Job:
    """Accept a job. It is in Postgres before the answer leaves, and ends exactly once.

    With an `Idempotency-Key` it may be posted again, when the answer was lost: there is one job. With `Prefer: wait=30`
    the answer is held until the job is over, or the time is.
    """
    key = await key_of(request, ttl=state.rules.idempotency_ttl)
    seconds = wait_of(request)
    submitted = await submit_job(body, state, request_id=request_id_of(request), key=key)
    record = submitted.record
    if submitted.is_replay:
        response.headers["Idempotency-Replayed"] = "true"
    if seconds is not None:
        response.headers["Preference-Applied"] = f"wait={seconds}"
        record = await _held(record, request, state, seconds=seconds)
    view = job_view(record)
    response.headers["Location"] = view.links.self
    return view


async def _held(record: JobRecord, request: Request, state: ApiState, *, seconds: int) -> JobRecord:
    """The job as it is when it is over, or when the seconds are."""
    if JobStatus(record.job.status).is_terminal:
        return record
    await state.job_ends.wait(record.job.id, seconds=seconds, has_left=request.is_disconnected)
    try:
        return await state.jobs.find(record.job.id) or record
    except DatabaseUnavailable:
        # The job is accepted, whatever can be said of it now.
        return record


@router.get("", operation_id="list_jobs", summary="List jobs", responses=error_responses(400, 422, 503))
async def list_jobs(
    state: State,
    status: Annotated[list[JobStatus] | None, Query(max_length=20, description="Repeat it for several.")] = None,
    type: Annotated[JobType | None, Query()] = None,
    error_code: ErrorCodes = None,
    model_id: ModelReference = None,
    created_after: Time = None,
    created_before: Time = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> JobList:
    """Jobs, newest first. Pages skip and repeat nothing while jobs are added."""
    async with in_time():
        wanted = JobFilter(
            statuses=tuple(status or ()),
            error_codes=tuple(error_code or ()),
            type=type,
            model_ids=await known_models(model_id, state) if model_id else (),
            created_after=created_after,
            created_before=created_before,
        )
        after = decode_job_cursor(cursor) if cursor is not None else None
        page = await state.jobs.list(wanted, after=after, limit=limit)
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
    async with in_time():
        record = await _find(job_id, state)
        answer = await state.jobs.cancel(record.job.id)
        if answer is CancelAnswer.OVER:
            response.status_code = 200
        return job_view(await _find(job_id, state))


@router.post(
    "/{job_id}/retry",
    status_code=202,
    operation_id="retry_job",
    summary="Retry a job",
    responses=error_responses(404, 409, 503),
)
async def retry(job_id: str, request: Request, state: State) -> Job:
    """Queue a job again that has failed or was cancelled. Images that are finished stay, and are not drawn again."""
    if not await retry_job(_id(job_id), state, request_id=request_id_of(request)):
        raise NotFound(_NO_JOB)
    return job_view(await _find(job_id, state))


@router.delete(
    "/{job_id}",
    status_code=204,
    operation_id="delete_job",
    summary="Delete a job",
    responses=error_responses(404, 409, 503),
)
async def delete_job(job_id: str, state: State) -> None:
    """Delete a job that is over, its images and its events. Its presigned URLs end, and its Idempotency-Key is free."""
    keys = await state.jobs.delete(_id(job_id))
    if keys is None:
        raise NotFound(_NO_JOB)
    try:
        await state.blob_threads.run(state.blobs.remove, keys)
    except StorageUnavailable as error:
        # The rows are gone and so is the job: what is left in the bucket has no row, and is swept up by that.
        log.warning(
            "left objects of a deleted job to the sweep",
            extra={"job_id": job_id, "objects": len(keys), "reason": error.message},
        )


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
    async with in_time():
        record = await _find(job_id, state)
        place = decode_artifact_cursor(cursor) if cursor is not None else None
        page = await state.jobs.artifacts(record.job.id, after=place, limit=limit)
    views = [artifact_view(row.ArtifactRow, blobs=state.blobs, ttl=state.rules.presign_ttl) for row in page.artifacts]
    last = page.artifacts[-1] if page.more else None
    next_cursor = encode_artifact_cursor(last.position, last.ArtifactRow.item_index) if last else None
    return ArtifactList(items=views, next_cursor=next_cursor)


async def _find(job_id: str, state: ApiState) -> JobRecord:
    record = await state.jobs.find(_id(job_id))
    if record is None:
        raise NotFound(_NO_JOB)
    return record


def _id(job_id: str) -> uuid.UUID:
    identity = uuid_of(job_id)
    if identity is None:
        raise NotFound(_NO_JOB)
    return identity
