"""Our dispatcher, killed at a moment: `python -m tests.benchmarks.losses_ours DATABASE REDIS RAY [PLACE SIGNAL]`."""

import os
import signal
import subprocess
import sys
import time
import uuid
from typing import Any

import ray
from ray import ObjectRef

from dreamforge.dispatch.cluster import GpuNode
from dreamforge.dispatch.dispatcher import Dispatcher, DispatcherTimes
from dreamforge.dispatch.flight import FlightTimes, Tasks
from dreamforge.dispatch.intake import Slot
from dreamforge.jobs.events import ItemStarted, StepStarted
from dreamforge.jobs.job import Lane
from dreamforge.jobs.outcome import Outcome
from dreamforge.queue import Ticket, TicketQueue, connect
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.claims import Claim, ClaimStore
from dreamforge.store.endings import EndingStore
from dreamforge.store.engine import open_engine
from dreamforge.store.fence import Fence
from tests.benchmarks.moments import (
    AFTER_POP,
    AFTER_REGISTRATION,
    BEFORE_ACKNOWLEDGEMENT,
    IN_THE_JOB,
    Fate,
    Moment,
    die,
)
from tests.integration.factories import Jobs, a_job, a_model, an_artifact

LEASE_SECONDS = 3.0
_PATIENCE = 60.0
_WORK_SECONDS = 0.3


class Ours:
    """The dispatcher, over servers that are there."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self._urls = (database_url, redis_url)
        self._engine = open_engine(database_url, application="benchmark")
        self._jobs = Jobs(database_url)
        self._model = a_model(self._engine)

    def fate(self, moment: Moment) -> Fate:
        """Of one job whose dispatcher is killed then."""
        connect(self._urls[1]).flushall()
        new = a_job(self._model)
        with self._process(moment.place, str(int(moment.signal))) as mortal:
            # Once its slots wait, so that a ticket wakes one.
            _wait(lambda: _slots_wait(self._urls[1]))
            self._jobs.submit(new)
            ticket = Ticket(
                step_id=str(new.step_ids[0]), job_id=str(new.id), step="generate", attempt=0, request_id="x"
            )
            TicketQueue(redis=connect(self._urls[1]), lane=Lane.GPU).push(ticket)
            mortal.wait(_PATIENCE)
        killed_at = time.monotonic()
        with self._process() as healthy:
            recovered = _wait(lambda: self._jobs.find(new.id).job.status == "succeeded", may_fail=True)
            recovery = time.monotonic() - killed_at if recovered else None
            healthy.kill()
        codes = [event.code for event in self._jobs.events(new.id)]
        return Fate(codes.count("item.started"), codes.count("artifact.created"), recovery)

    def _process(self, *moment: str) -> "subprocess.Popen[bytes]":
        address = ray.get_runtime_context().gcs_address
        command = [sys.executable, "-m", __name__, *self._urls, address, *moment]
        # They die with a trace, and Ray has a word on each.
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def _wait(condition: Any, *, may_fail: bool = False) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    if may_fail:
        return False
    raise TimeoutError("it did not come about")


def _slots_wait(redis_url: str) -> bool:
    clients: Any = connect(redis_url).client_list()
    return sum(client["cmd"] in {"blmove", "brpoplpush"} for client in clients) == 2


def _play(database_url: str, order: dict[str, Any], killed: int | None) -> None:
    """What a supervisor does. ``killed``: the dispatcher that is killed in the middle of the first attempt."""
    engine = open_engine(database_url, application="played", pool_size=1)
    attempt = AttemptStore(engine=engine, fence=Fence(**order))
    call = attempt.load_call()
    metadata = {"supervisor_pid": os.getpid()}
    attempt.start(StepStarted(step=call.step, attempt=order["attempt"], node="played"), metadata=metadata)
    for item in call.items:
        attempt.begin_item(ItemStarted(item_index=item.index, seed=item.index))
        time.sleep(_WORK_SECONDS)
        if killed is not None and order["attempt"] == 1:
            os.kill(killed, signal.SIGKILL)
            time.sleep(_PATIENCE)
        attempt.publish(an_artifact(item.index))
    attempt.report(Outcome(), metadata={})


def _prepare_to_die(place: str, number: int) -> None:
    """Have this process send itself the signal where it comes to the place."""

    def dying(*_: Any, **__: Any) -> Any:
        die(number)
        time.sleep(_PATIENCE)

    claim = ClaimStore.claim

    def claim_and_die(self: ClaimStore, **values: Any) -> Claim | None:
        found = claim(self, **values)
        return found if found is None else dying()

    if place == AFTER_POP:
        Slot._on_ticket = dying  # type: ignore[method-assign] - it dies there
    if place == AFTER_REGISTRATION:
        ClaimStore.claim = claim_and_die  # type: ignore[method-assign] - it dies there
    if place == BEFORE_ACKNOWLEDGEMENT:
        EndingStore.finalize = dying  # type: ignore[method-assign] - it dies there


def _main(database_url: str, redis_url: str, address: str, place: str = "", number: str = "0") -> None:
    _prepare_to_die(place, int(number))
    ray.init(address=address, log_to_driver=False, configure_logging=False)
    task = ray.remote(num_gpus=1, num_cpus=0, max_calls=1, max_retries=0)(_play)
    killed = os.getpid() if place == IN_THE_JOB else None

    def submit(claim: Claim) -> "ObjectRef[None]":
        return task.remote(database_url, vars(claim.fence), killed)

    dispatcher = Dispatcher(
        id=str(os.getpid()),
        node="here",
        engine=open_engine(database_url, application="mortal", pool_size=8),
        redis_url=redis_url,
        steps=Tasks(submit, lambda *_: None),
        nodes=lambda: [GpuNode(id="a", address="127.0.0.1", gpus=1)],
        times=DispatcherTimes(
            flight=FlightTimes(lease=LEASE_SECONDS, lease_renew=0.5, start_timeout=60),
            heartbeat=0.5,
            outbox=0.2,
            drain=0,
        ),
        new_token=uuid.uuid4,
    )
    dispatcher.start()
    signal.pause()


if __name__ == "__main__":
    _main(*sys.argv[1:])
