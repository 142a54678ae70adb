"""`/v1/jobs/{id}/logs`, `/progress` and `/progress/stream`: what has happened to a job, and what happens."""

import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from dreamforge.api.errors import HttpError, error_responses
from dreamforge.api.openapi import NDJSON, events_of, lines_of
from dreamforge.api.progress import progress_view
from dreamforge.api.schemas import LogLine, Progress, StreamEvent
from dreamforge.api.sse import KEEP_ALIVE, MEDIA_TYPE, RETRY, Frame, pieces, place_of
from dreamforge.api.sse_response import LiveResponse
from dreamforge.api.state import ApiState, State
from dreamforge.api.tail import BATCH, Page, StreamBroken
from dreamforge.api.tail_reading import Reading
from dreamforge.errors import DatabaseUnavailable, NotFound
from dreamforge.jobs.events import EventCode
from dreamforge.jobs.identity import uuid_of
from dreamforge.store.engine import in_time
from dreamforge.store.events import EventFilter, EventRecord

router = APIRouter(prefix="/v1/jobs", tags=["events"])

_USER = "default"
_NO_EVENT = 2**63 - 1
"""A place that nothing is behind."""
_NOTHING = b"\n"
"""A sign of life between two lines: parsers of NDJSON skip empty ones."""


def _behind(beyond: str) -> Any:
    return Query(
        ge=0, le=2**62, description=f"Only events behind this `seq`. One that the job has not come to: {beyond}."
    )


_LAST_EVENT_ID: dict[str, Any] = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "The last `id` that was received; it wins over `after`.",
    "schema": {"type": "integer", "minimum": 0},
}


@router.get(
    "/{job_id}/logs",
    operation_id="get_job_logs",
    summary="Read a job's events",
    response_class=StreamingResponse,
    responses={
        200: lines_of(LogLine),
        **error_responses(400, 404, 422, 503),
    },
)
async def get_job_logs(
    job_id: str,
    state: State,
    after: Annotated[int, _behind("400 with `follow`, no events without")] = 0,
    level: Annotated[
        list[Literal["debug", "info", "warning", "error"]] | None,
        Query(
            max_length=4,
            description="Only events of exactly this level; repeat it for several: `level=warning&level=error` is "
            "what went wrong.",
        ),
    ] = None,
    code: Annotated[
        list[EventCode] | None, Query(max_length=50, description="Only events of this code; repeat it for several.")
    ] = None,
    item_index: Annotated[int | None, Query(ge=0, le=99, description="Only events about this image.")] = None,
    follow: Annotated[bool, Query(description="Go on until the job is over.")] = False,
) -> StreamingResponse:
    """Every event so far, one JSON object a line, oldest first; with `follow` also those to come.

    While it follows, an empty line after some seconds of silence keeps proxies from hanging up. The answer is complete
    when the job is over; one that breaks off is taken up again with `after`.
    """
    wanted = EventFilter(after=after, levels=tuple(level or ()), codes=tuple(code or ()), item_index=item_index)
    if follow:
        page = await _page(job_id, state, after=after)
        reading = _reading(job_id, state, after=after, page=page, wanted=wanted)
        return LiveResponse(_log(reading), media_type=NDJSON, stall=state.rules.streams.stall)
    identity = _identity(job_id)
    events = state.jobs.events(identity, wanted)
    async with in_time():
        if await state.events.user_of(identity) != _USER:
            raise _not_found()
        # Read before the answer begins: an error can still be told.
        first = await anext(events, None)
    return LiveResponse(_lines(first, events), media_type=NDJSON, stall=state.rules.streams.stall)


@router.get(
    "/{job_id}/progress",
    operation_id="get_job_progress",
    summary="Get a job's progress",
    responses=error_responses(404, 503),
)
async def get_job_progress(job_id: str, state: State) -> Progress:
    """How far the job and each of its images is. No number ever goes down, across retries too."""
    identity = _identity(job_id)
    found = await state.progress.find(identity)
    if found is None:
        raise _not_found()
    return progress_view(identity, found)


@router.get(
    "/{job_id}/progress/stream",
    operation_id="stream_job_progress",
    summary="Follow a job",
    response_class=StreamingResponse,
    openapi_extra={"parameters": [_LAST_EVENT_ID]},
    responses={
        200: events_of(StreamEvent),
        204: {"description": "The job is over, and the client has everything: do not connect again."},
        **error_responses(400, 404, 422, 503),
    },
)
async def stream_job_progress(
    job_id: str, request: Request, state: State, after: Annotated[int, _behind("400")] = 0
) -> Response:
    """Every event of the job as a server-sent event, from the start or behind a place, until the job is over.

    `id` is the event's `seq`. A stream that breaks off is taken up again with `Last-Event-ID`, which wins over `after`,
    because a browser repeats the address and adds the header: each event comes once, on any replica. The answer is
    complete when the job is over; a client that then has everything gets 204.
    """
    named = place_of(request.headers.getlist("Last-Event-ID"))
    place = after if named is None else named
    page = await _page(job_id, state, after=place)
    if page.is_terminal and place == page.last_seq:
        return Response(status_code=204, headers={"Cache-Control": "no-store"})
    reading = _reading(job_id, state, after=place, page=page)
    return LiveResponse(_events(reading), media_type=MEDIA_TYPE, stall=state.rules.streams.stall)


async def _page(job_id: str, state: ApiState, *, after: int) -> Page:
    """The job's first page behind ``after``. Raises 404, and 400 for a place that the job has not come to.

    Whoever is ahead has an id of another job, or of a database that was put back: it would wait for ever.
    """
    page = await state.tail.page(_identity(job_id), after=min(after, _NO_EVENT))
    if page is None or page.user_id != _USER:
        raise _not_found()
    if after > page.last_seq:
        raise HttpError(400, f"There is no event {after} yet: the job's last one is {page.last_seq}.")
    return page


def _reading(job_id: str, state: ApiState, *, after: int, page: Page, wanted: EventFilter | None = None) -> Reading:
    def fits(frame: Frame) -> bool:
        return wanted is None or wanted.fits(frame.event)

    return Reading(tail=state.tail, job_id=_identity(job_id), after=after, page=page, fits=fits)


async def _events(reading: Reading) -> AsyncGenerator[bytes]:
    yield RETRY
    async with aclosing(reading.batches()) as batches:
        async for frames in batches:
            for piece in pieces(frame.sse for frame in frames) if frames else (KEEP_ALIVE,):
                yield piece


async def _log(reading: Reading) -> AsyncGenerator[bytes]:
    async with aclosing(reading.batches()) as batches:
        async for frames in batches:
            for piece in pieces(frame.line for frame in frames) if frames else (_NOTHING,):
                yield piece


async def _lines(first: EventRecord | None, events: AsyncIterator[EventRecord]) -> AsyncGenerator[bytes]:
    held = [] if first is None else [Frame(first).line]
    try:
        async for event in events:
            held.append(Frame(event).line)
            if len(held) == BATCH:
                for piece in pieces(held):
                    yield piece
                held = []
    except DatabaseUnavailable as error:
        raise StreamBroken("the database is away") from error
    for piece in pieces(held):
        yield piece


def _identity(job_id: str) -> uuid.UUID:
    identity = uuid_of(job_id)
    if identity is None:
        raise _not_found()
    return identity


def _not_found() -> NotFound:
    return NotFound("There is no such job.")
