"""Jobs and models for tests that do not care about the rest."""

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from sqlalchemy import Engine
from uuid6 import uuid7

from dreamforge.jobs.cancellation import CancelAnswer
from dreamforge.jobs.job import JobType, Lane, Priority
from dreamforge.jobs.plan import plan
from dreamforge.models.descriptor import SizeRange, sdxl_schema
from dreamforge.models.parameters import resolve_parameters
from dreamforge.store.claims import Claim, ClaimStore
from dreamforge.store.engine import open_async_engine
from dreamforge.store.events import EventFilter, EventRecord
from dreamforge.store.jobs import JobPage, JobRecord, JobStore, NewJob
from dreamforge.store.listing import JobFilter, JobPlace
from dreamforge.store.models import ModelRegistry, NewModel, NewModelFile

_Result = TypeVar("_Result")
SCHEMA = sdxl_schema(size=SizeRange(least=64, most=512, default=64), default_steps=2)


def a_model(engine: Engine, **changes: Any) -> NewModel:
    """Register a model."""
    values: dict[str, Any] = {
        "id": uuid7(),
        "name": f"model-{uuid.uuid4().hex[:8]}",
        "kind": "sdxl",
        "version": "1",
        "checkpoint_hash": "ab" * 32,
        "source_uri": "builtin:test",
        "local_path": "/nowhere",
        "parameters_schema": SCHEMA,
        "capabilities": ("generate",),
        "metadata": {},
        "files": (NewModelFile(path="model_index.json", size=2, sha256="cd" * 32),),
    }
    model = NewModel(**{**values, **changes})
    ModelRegistry(engine=engine).register(model)
    return model


def a_job(model: NewModel, *, count: int = 1, priority: Priority = Priority.NORMAL, **params: Any) -> NewJob:
    """A job that can be submitted."""
    steps = plan(JobType.GENERATE, count=count)
    return NewJob(
        id=uuid7(),
        type=JobType.GENERATE,
        priority=priority,
        model_id=model.id,
        count=count,
        params=resolve_parameters({"prompt": "a lighthouse", **params}, SCHEMA),
        options={},
        metadata={},
        request_id="test",
        steps=steps,
        step_ids=tuple(uuid7() for _ in steps),
    )


def claim(engine: Engine, *, lease_seconds: float = 30.0) -> Claim | None:
    """Claim the best due step."""
    return ClaimStore(engine=engine).claim(lane=Lane.GPU, lease_token=uuid.uuid4(), lease_seconds=lease_seconds)


class Jobs:
    """The API's store, for tests that are not async."""

    def __init__(self, database_url: str) -> None:
        self.url = database_url

    def submit(self, new: NewJob) -> None:
        """Write the job; no ticket goes out."""
        self._run(lambda store: store.submit(new))

    def cancel(self, job_id: uuid.UUID) -> CancelAnswer | None:
        """Ask for the job's end."""
        return self._run(lambda store: store.cancel(job_id))

    def page(self, wanted: JobFilter | None = None, *, after: JobPlace | None = None, limit: int = 50) -> JobPage:
        """A page of jobs, newest first."""
        return self._run(lambda store: store.list(wanted or JobFilter(), after=after, limit=limit))

    def find(self, job_id: uuid.UUID) -> JobRecord:
        """The job, which must be there."""
        record = self._run(lambda store: store.find(job_id))
        assert record is not None
        return record

    def events(self, job_id: uuid.UUID, wanted: EventFilter | None = None) -> list[EventRecord]:
        """The job's events, oldest first."""

        async def collect(store: JobStore) -> list[EventRecord]:
            return [event async for event in store.events(job_id, wanted or EventFilter())]

        return self._run(collect)

    def _run(self, use: Callable[[JobStore], Coroutine[Any, Any, _Result]]) -> _Result:
        async def run() -> _Result:
            engine = open_async_engine(self.url, application="tests")
            try:
                return await use(JobStore(engine=engine))
            finally:
                await engine.dispose()

        return asyncio.run(run())
