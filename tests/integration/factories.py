"""Jobs and models for tests that do not care about the rest."""

import asyncio
import hashlib
import threading
import uuid
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy import Engine, text
from uuid6 import uuid7

from dreamforge.blobs import Blobs
from dreamforge.errors import DreamForgeError
from dreamforge.jobs.cancellation import CancelAnswer
from dreamforge.jobs.events import ItemStarted
from dreamforge.jobs.job import JobType, Lane, Priority
from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.jobs.plan import plan
from dreamforge.models.descriptor import SizeRange, sdxl_schema
from dreamforge.models.parameters import resolve_parameters
from dreamforge.patience import for_seconds, outlast
from dreamforge.store.attempts import AttemptStore, NewArtifact
from dreamforge.store.claims import Claim, ClaimStore
from dreamforge.store.endings import EndingStore
from dreamforge.store.engine import open_async_engine
from dreamforge.store.events import EventFilter, EventRecord
from dreamforge.store.fence import Fence
from dreamforge.store.jobs import JobPage, JobRecord, JobStore, NewJob
from dreamforge.store.listing import JobFilter, JobPlace
from dreamforge.store.models import ModelRegistry, NewModel, NewModelFile
from dreamforge.store.retrying import QueuedStep
from tests.service import wait_for

_Result = TypeVar("_Result")
"""A body that `POST /v1/jobs` takes."""
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


def a_download(source: str = "civitai:277058@1920523", **params: Any) -> NewJob:
    """A job that downloads a model and can be submitted."""
    steps = plan(JobType.MODEL_DOWNLOAD, count=1)
    return NewJob(
        id=uuid7(),
        type=JobType.MODEL_DOWNLOAD,
        priority=Priority.NORMAL,
        model_id=None,
        count=1,
        params={"source": source, **params},
        options={},
        metadata={},
        request_id="test",
        steps=steps,
        step_ids=tuple(uuid7() for _ in steps),
    )


def claim(engine: Engine, *, lease_seconds: float = 30.0) -> Claim | None:
    """Claim the best due step."""
    return ClaimStore(engine=engine).claim(lane=Lane.GPU, lease_token=uuid.uuid4(), lease_seconds=lease_seconds)


def claimed(engine: Engine) -> Claim:
    """Claim the best due step, which must be there."""
    found = claim(engine)
    assert found is not None
    return found


def an_artifact(index: int, *, data: bytes = b"png", key: str | None = None, seed: int = 5) -> NewArtifact:
    """An artifact that can be published."""
    return NewArtifact(
        id=uuid7(),
        item_index=index,
        format="png",
        width=64,
        height=64,
        seed=seed,
        s3_key=key or f"key-{uuid.uuid4()}",
        size_bytes=len(data),
        checksum=hashlib.sha256(data).hexdigest(),
        metadata={},
        timings={"denoise": 0.1},
    )


def draw(engine: Engine, blobs: Blobs, fence: Fence, *, index: int, data: bytes) -> NewArtifact:
    """Play the supervisor for one item: its object, its row."""
    artifact = an_artifact(index, data=data, key=f"drawn/{uuid.uuid4()}", seed=index)
    blobs.put(artifact.s3_key, data, content_type="image/png")
    attempt = AttemptStore(engine=engine, fence=fence)
    attempt.begin_item(ItemStarted(item_index=index, seed=index))
    attempt.publish(artifact)
    return artifact


def finish(engine: Engine, blobs: Blobs, *, count: int, of: int | None = None) -> list[NewArtifact]:
    """Claim the best due step and draw ``count`` of its items; it fails when there are more, ``of`` so many."""
    fence = claimed(engine).fence
    drawn = [draw(engine, blobs, fence, index=index, data=b"image %d" % index) for index in range(count)]
    failure = Failure("oom", "too large") if of is not None and of > count else None
    AttemptStore(engine=engine, fence=fence).report(Outcome(failure), metadata={})
    EndingStore(engine=engine).finalize(fence)
    return drawn


def is_lock_waited_for(engine: Engine) -> bool:
    """True while a transaction of this database waits for another's lock."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    with engine.connect() as connection:
        return bool(connection.execute(waiting).scalar_one())


def wait_for_lock(engine: Engine) -> None:
    """Return once a transaction of this database waits for another's lock."""
    wait_for(lambda: is_lock_waited_for(engine), what="a wait for a lock")


def at_once(*acts: Callable[[], object]) -> list[object]:
    """Everything in threads of their own, begun together; what each returned, or the error of ours that it raised."""
    together = threading.Barrier(len(acts))

    def run(act: Callable[[], object]) -> object:
        together.wait()
        try:
            return act()
        except DreamForgeError as error:
            return error

    with ThreadPoolExecutor(len(acts)) as pool:
        return [future.result() for future in [pool.submit(run, act) for act in acts]]


class Jobs:
    """The API's store, for tests that are not async."""

    def __init__(self, database_url: str) -> None:
        self.url = database_url

    def submit(self, new: NewJob) -> JobRecord:
        """Write the job; no ticket goes out."""
        return self._run(lambda store: store.submit(new))

    def cancel(self, job_id: uuid.UUID) -> CancelAnswer | None:
        """Ask for the job's end."""
        return self._run(lambda store: store.cancel(job_id))

    def retry(self, job_id: uuid.UUID) -> QueuedStep | None:
        """Queue the job again."""
        return self._run(lambda store: store.retry(job_id))

    def delete(self, job_id: uuid.UUID) -> Sequence[str] | None:
        """Delete the job."""
        return self._run(lambda store: store.delete(job_id))

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

        # The API's time is short for a machine that is busy with tests.
        return outlast(lambda: asyncio.run(run()), may_wait=for_seconds(30))
