"""From a request to a job in Postgres and a ticket in the queue; the same for a job that is queued again."""

import asyncio
import logging
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from uuid6 import uuid7

from dreamforge.api.companions import resolve_companions
from dreamforge.api.model_downloads import DownloadModel, download_params, require_slots
from dreamforge.api.model_reference import usable_model
from dreamforge.api.schemas import CreateJob
from dreamforge.api.state import ApiState
from dreamforge.errors import QueueUnavailable
from dreamforge.jobs.job import JobType, Lane, Priority
from dreamforge.jobs.plan import plan
from dreamforge.models.parameters import resolve_parameters
from dreamforge.queue import REQUEST_TIMEOUT, Ticket
from dreamforge.store.engine import in_time
from dreamforge.store.idempotency import IdempotencyKey
from dreamforge.store.jobs import JobRecord, NewJob

log = logging.getLogger(__name__)

_RING_SECONDS = 0.25
"""What a job that is accepted already waits for Redis: the outbox rings as well."""


@dataclass(frozen=True)
class Submitted:
    """The job of a request. ``is_replay``: an earlier request with the same key made it."""

    record: JobRecord
    is_replay: bool


async def submit_job(
    request: CreateJob, state: ApiState, *, request_id: str, key: IdempotencyKey | None = None
) -> Submitted:
    """Validate, write, ring the bell; or find what the key stands for. Raises the error that the client should see."""
    return await _submit(lambda: _new_job(request, state, request_id=request_id, key=key), state, key=key)


async def submit_download(
    request: DownloadModel, state: ApiState, *, request_id: str, key: IdempotencyKey | None = None
) -> Submitted:
    """The same for a model to download."""
    return await _submit(lambda: _new_download(request, state, request_id=request_id, key=key), state, key=key)


async def _submit(
    make: Callable[[], Coroutine[None, None, NewJob]], state: ApiState, *, key: IdempotencyKey | None
) -> Submitted:
    # First of all: a replay needs neither Redis nor a model that may be gone by now.
    if key is not None and (earlier := await state.jobs.replay(key)) is not None:
        return Submitted(earlier, is_replay=True)
    await _require_queue(state)
    async with in_time():
        new = await make()
        record = await state.jobs.submit(new)
    if record.job.id != new.id:
        return Submitted(record, is_replay=True)
    first = new.steps[0]
    ticket = Ticket(
        step_id=str(new.step_ids[0]), job_id=str(new.id), step=first.name, attempt=0, request_id=new.request_id
    )
    await _ring(ticket, first.lane, state)
    return Submitted(record, is_replay=False)


async def retry_job(job_id: uuid.UUID, state: ApiState, *, request_id: str) -> bool:
    """Queue the job again, ring the bell. False when there is no such job; raises ``Conflict``."""
    await _require_queue(state)
    if not state.rules.takes_downloads:
        record = await state.jobs.find(job_id)
        if record is not None and record.job.type == JobType.MODEL_DOWNLOAD:
            require_slots(state)
    step = await state.jobs.retry(job_id)
    if step is None:
        return False
    ticket = Ticket(
        step_id=str(step.id), job_id=str(job_id), step=step.name, attempt=step.attempt, request_id=request_id
    )
    await _ring(ticket, step.lane, state)
    return True


async def _new_job(request: CreateJob, state: ApiState, *, request_id: str, key: IdempotencyKey | None) -> NewJob:
    job_type = JobType(request.type)
    model = await usable_model(request.model_id, job_type, state)
    steps = plan(job_type, count=request.count)
    params = await resolve_companions(resolve_parameters(request.params, model.parameters_schema), model, state)
    return NewJob(
        id=uuid7(),
        type=job_type,
        priority=Priority(request.priority),
        model_id=model.id,
        count=request.count,
        params=params,
        options=request.options.model_dump(),
        metadata=request.metadata,
        request_id=request_id,
        steps=steps,
        step_ids=tuple(uuid7() for _ in steps),
        key=key,
    )


async def _new_download(
    request: DownloadModel, state: ApiState, *, request_id: str, key: IdempotencyKey | None
) -> NewJob:
    steps = plan(JobType.MODEL_DOWNLOAD, count=1)
    return NewJob(
        id=uuid7(),
        type=JobType.MODEL_DOWNLOAD,
        priority=Priority(request.priority),
        # Not even at its end: a model that only its own download names can be removed.
        model_id=None,
        count=1,
        params=download_params(request, state),
        options={},
        metadata=request.metadata,
        request_id=request_id,
        steps=steps,
        step_ids=tuple(uuid7() for _ in steps),
        key=key,
    )


async def _require_queue(state: ApiState) -> None:
    if state.rules.redis_outage == "reject":
        await _in_time(state.redis_threads.run(state.tickets[Lane.GPU].ping), REQUEST_TIMEOUT)


async def _ring(ticket: Ticket, lane: Lane, state: ApiState) -> None:
    try:
        await _in_time(state.redis_threads.run(state.tickets[lane].push, ticket), _RING_SECONDS)
    except QueueUnavailable:
        # The job is accepted: the outbox rings for it once Redis is back.
        log.warning("accepted a job while Redis is away", extra={"job_id": ticket.job_id})


async def _in_time(asked: Coroutine[None, None, None], seconds: float) -> None:
    # With the wait for a thread: while Redis hangs, all of them do.
    try:
        async with asyncio.timeout(seconds):
            await asked
    except TimeoutError as error:
        raise QueueUnavailable from error
