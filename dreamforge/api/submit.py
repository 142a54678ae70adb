"""From a request to a job in Postgres and a ticket in the queue."""

import asyncio
import logging

from uuid6 import uuid7

from dreamforge.api.model_reference import usable_model
from dreamforge.api.schemas import CreateJob
from dreamforge.api.state import ApiState
from dreamforge.errors import QueueUnavailable
from dreamforge.jobs.job import JobType, Lane, Priority
from dreamforge.jobs.plan import plan
from dreamforge.models.parameters import resolve_parameters
from dreamforge.queue import Ticket
from dreamforge.store.jobs import JobRecord, NewJob

log = logging.getLogger(__name__)


async def submit_job(request: CreateJob, state: ApiState, *, request_id: str) -> JobRecord:
    """Validate, write, ring the bell. Raises the error that the client should see."""
    if state.rules.redis_outage == "reject":
        await asyncio.to_thread(state.tickets[Lane.GPU].ping)
    job_type = JobType(request.type)
    model = await usable_model(request.model_id, job_type, state)
    steps = plan(job_type, count=request.count)
    new = NewJob(
        id=uuid7(),
        type=job_type,
        priority=Priority(request.priority),
        model_id=model.id,
        count=request.count,
        params=resolve_parameters(request.params, model.parameters_schema),
        options=request.options.model_dump(),
        metadata=request.metadata,
        request_id=request_id,
        steps=steps,
        step_ids=tuple(uuid7() for _ in steps),
    )
    await state.jobs.submit(new)
    await _ring(new, state)
    record = await state.jobs.find(new.id)
    if record is None:
        raise RuntimeError("a job that was just written is not there")
    return record


async def _ring(new: NewJob, state: ApiState) -> None:
    first, step_id = new.steps[0], new.step_ids[0]
    ticket = Ticket(step_id=str(step_id), job_id=str(new.id), step=first.name, attempt=0, request_id=new.request_id)
    try:
        await asyncio.to_thread(state.tickets[first.lane].push, ticket)
    except QueueUnavailable:
        # The job is accepted: the outbox rings for it once Redis is back.
        log.warning("accepted a job while Redis is away", extra={"job_id": str(new.id)})
