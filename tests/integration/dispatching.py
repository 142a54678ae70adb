"""A dispatcher over a real Ray, Postgres and Valkey; only the supervisor's work is played, in real Ray tasks."""

import os
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray import ObjectRef
from sqlalchemy import Engine, text

from dreamforge.dispatch.cluster import GpuNode
from dreamforge.dispatch.dispatcher import Dispatcher, DispatcherTimes, Downloads
from dreamforge.dispatch.flight import FlightTimes, Tasks
from dreamforge.errors import DatabaseUnavailable
from dreamforge.jobs.job import JobStatus, JobType
from dreamforge.jobs.retry import RetryPolicy
from dreamforge.store.claims import Claim, Whereabouts
from dreamforge.store.endings import RetryRules
from dreamforge.store.engine import open_engine
from dreamforge.store.jobs import JobRecord, NewJob
from dreamforge.store.models import NewModel
from tests.integration.factories import Jobs, a_download, a_job, a_model
from tests.service import wait_for

ONE_GPU = [GpuNode(id="a", address="127.0.0.1", gpus=1)]


def _play(behaviour: str, database_url: str, order: dict[str, Any]) -> None:
    """What a supervisor does, as far as the dispatcher can see it. Runs in a Ray worker."""
    from dreamforge.jobs.events import ItemFinished, ModelInstalled, StepStarted  # noqa: PLC0415 - in the worker
    from dreamforge.jobs.outcome import Outcome  # noqa: PLC0415 - in the worker
    from dreamforge.store.attempts import AttemptStore, NewArtifact  # noqa: PLC0415 - in the worker
    from dreamforge.store.fence import Fence  # noqa: PLC0415 - in the worker

    engine = open_engine(database_url, application="played", pool_size=1)
    attempt = AttemptStore(engine=engine, fence=Fence(**order))
    call = attempt.load_call()
    metadata = {"node_id": None, "supervisor_pid": os.getpid()}
    attempt.arrive(metadata)
    if behaviour == "stand still before it begins":
        os.kill(os.getpid(), signal.SIGSTOP)
    if behaviour == "begin slowly and take its time":
        time.sleep(2)
    attempt.start(StepStarted(step=call.step, attempt=order["attempt"], node="played"), metadata=metadata)
    _misbehave(behaviour)
    if call.job_type == JobType.MODEL_DOWNLOAD:
        for item in call.items:
            attempt.install(
                ModelInstalled(model_id="1", name="tiny", version="1", is_new=True),
                ItemFinished(item_index=item.index, seed=None, timings={}),
            )
        call = replace(call, items=())
    for item in call.items:
        attempt.publish(
            NewArtifact(
                id=uuid.uuid4(),
                item_index=item.index,
                format="png",
                width=64,
                height=64,
                seed=item.index,
                s3_key=f"played/{order['step_id']}/{item.index}",
                size_bytes=1,
                checksum="00" * 32,
                metadata={},
                timings={},
            )
        )
    attempt.report(Outcome(), metadata={"holds_gpu": behaviour == "hold the GPU"})
    if behaviour == "hold the GPU":
        time.sleep(600)
    if behaviour == "die after the report":
        os._exit(7)


def _misbehave(behaviour: str) -> None:
    if behaviour == "stand still":
        os.kill(os.getpid(), signal.SIGSTOP)
    if behaviour == "take a lot of memory":
        taken: list[bytearray] = []
        for _ in range(100):
            taken.append(bytearray(64 << 20))
            # What was never written to is not there.
            taken[-1][::4096] = b"x" * (16 << 10)
            time.sleep(0.03)
    if behaviour == "raise":
        raise ValueError("a secret is in this trace: hunter2")
    if behaviour == "die":
        os._exit(7)
    if behaviour == "lose the database":
        raise DatabaseUnavailable
    seconds = {
        "hang": 600,
        "take its time": 9,
        "begin slowly and take its time": 9,
        "take long": 16,
        "take a moment": 2,
    }
    time.sleep(seconds.get(behaviour, 0))


class Dispatching:
    """A dispatcher and jobs for it."""

    def __init__(
        self,
        *,
        engine: Engine,
        database_url: str,
        redis_url: str,
        model: NewModel | None = None,
        dispatcher_engine: Engine | None = None,
    ) -> None:
        self._dispatcher_engine = dispatcher_engine or engine
        self.engine = engine
        self.jobs = Jobs(database_url)
        self.model: NewModel = model or a_model(engine)
        self.nodes: Callable[[], list[GpuNode]] = lambda: ONE_GPU
        self.new_token: Callable[[], uuid.UUID] = uuid.uuid4
        self.submitted: list[ObjectRef[None]] = []
        self.killed: list[tuple[Claim, Whereabouts]] = []
        self.refusals = 0
        self.dispatcher: Dispatcher | None = None
        self._database_url = database_url
        self._redis_url = redis_url

    def start(
        self,
        behaviour: str = "well",
        *,
        drain: float = 5.0,
        outbox: float = 0.1,
        renew: float = 60.0,
        start_timeout: float = 60.0,
        lease: float = 30.0,
        downloads: int = 0,
        download: str = "well",
        **resources: float,
    ) -> None:
        task = ray.remote(num_gpus=1, num_cpus=0, max_calls=1, max_retries=0, resources=resources)(_play)
        nowhere: dict[str, float] = {"nowhere": 1} if download == "nowhere" else {}
        download_task = ray.remote(num_cpus=0, max_calls=1, max_retries=0, resources=nowhere)(_play)

        def submit(claim: Claim) -> "ObjectRef[None]":
            if self.refusals:
                self.refusals -= 1
                raise RuntimeError("Ray takes nothing")
            self.submitted.append(task.remote(behaviour, self._database_url, vars(claim.fence)))
            return self.submitted[-1]

        def submit_download(claim: Claim) -> "ObjectRef[None]":
            self.submitted.append(download_task.remote(download, self._database_url, vars(claim.fence)))
            return self.submitted[-1]

        self.dispatcher = Dispatcher(
            id="test",
            node="127.0.0.1",
            engine=self._dispatcher_engine,
            redis_url=self._redis_url,
            steps=Tasks(submit, self.kill),
            nodes=lambda: self.nodes(),
            times=DispatcherTimes(
                flight=FlightTimes(lease=lease, lease_renew=renew, start_timeout=start_timeout),
                heartbeat=0.1,
                outbox=outbox,
                drain=drain,
            ),
            downloads=Downloads(downloads, Tasks(submit_download, self.kill)),
            rules=RetryRules(policy=RetryPolicy(first_pause=0.05)),
            new_token=lambda: self.new_token(),
        )
        self.dispatcher.start()

    def kill(self, claim: Claim, whereabouts: Whereabouts | None) -> None:
        assert whereabouts is not None
        self.killed.append((claim, whereabouts))
        os.kill(whereabouts.pid, signal.SIGKILL)

    def stop(self) -> None:
        if self.dispatcher is not None:
            self.dispatcher.stop()
        for task in self.submitted:
            ray.cancel(task, force=True)

    def submit(self, **options: Any) -> NewJob:
        """As the API does when Redis is away: without a ticket."""
        new = replace(a_job(self.model, count=2), options=options)
        self.jobs.submit(new)
        return new

    def submit_download(self) -> NewJob:
        """The same for a model to download."""
        new = a_download()
        self.jobs.submit(new)
        return new

    def find(self, new: NewJob) -> JobRecord:
        return self.jobs.find(new.id)

    def status(self, new: NewJob) -> str:
        return self.find(new).job.status

    def ended(self, new: NewJob) -> JobRecord:
        wait_for(lambda: JobStatus(self.status(new)).is_terminal, what="the job's end")
        return self.find(new)

    def images(self) -> list[str]:
        """Every image's key."""
        with self.engine.connect() as connection:
            return list(connection.scalars(text("SELECT s3_key FROM artifacts")))

    def slots(self) -> int | None:
        with self.engine.connect() as connection:
            return connection.scalar(text("SELECT (info_json->>'slots')::int FROM heartbeats WHERE kind='dispatcher'"))
