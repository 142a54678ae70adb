"""The dispatcher over a real Ray, Postgres and Valkey; only the supervisor's work is played, in real Ray tasks."""

import threading
import time
import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psutil
import pytest
import ray
from redis import Redis
from sqlalchemy import text

from dreamforge.dispatch.cluster import GpuNode, gpu_nodes
from dreamforge.jobs.job import JobStatus, Lane, StepStatus
from dreamforge.queue import Ticket, TicketQueue, connect
from dreamforge.store.claims import ClaimStore, Whereabouts
from dreamforge.store.fence import Fence
from tests.integration.dispatching import ONE_GPU, Dispatching
from tests.running_stack import lives, wait_for

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("cluster")]


def test_what_is_due_when_it_starts_is_run(service: Dispatching) -> None:
    new = service.submit()
    service.start()
    record = service.ended(new)
    assert (record.job.status, record.job.items_done, record.job.progress) == (JobStatus.SUCCEEDED, 2, 1.0)
    assert [step.status for step in record.steps] == [StepStatus.SUCCEEDED]


def test_a_ticket_wakes_a_slot_that_waits(service: Dispatching, redis_url: str) -> None:
    service.start(outbox=3600)
    wait_for(lambda: service.slots() == 2, what="the slots")
    wait_for(lambda: _waiting(connect(redis_url)) == 2, what="the slots' wait")
    new = service.submit()
    TicketQueue(redis=connect(redis_url), lane=Lane.GPU).push(
        Ticket(step_id=str(new.step_ids[0]), job_id=str(new.id), step="generate", attempt=0, request_id="test")
    )
    assert service.ended(new).job.status == JobStatus.SUCCEEDED


def _waiting(redis: Redis) -> int:
    clients: Any = redis.client_list()
    return sum(client["cmd"] in {"blmove", "brpoplpush"} for client in clients)


def test_jobs_without_a_ticket_are_run_even_after_redis_has_lost_everything(
    service: Dispatching, redis_url: str
) -> None:
    service.start()
    wait_for(lambda: _waiting(connect(redis_url)) == 2, what="the slots' wait")
    connect(redis_url).flushall()
    jobs = [service.submit() for _ in range(5)]
    assert {service.ended(new).job.status for new in jobs} == {JobStatus.SUCCEEDED}


def test_a_job_that_nothing_can_place_fails_in_its_time_and_the_next_one_runs(service: Dispatching) -> None:
    service.start(nowhere=1)
    record = service.ended(service.submit(start_timeout=0.7))
    assert record.job.status == JobStatus.FAILED
    assert record.job.error_json is not None
    assert record.job.error_json["code"] == "no_capacity"
    assert record.job.error_json["details"] == {"asked_for": {"GPU": 1}, "cluster": {"GPU": 1, "nodes": 1}}
    assert service.dispatcher is not None
    service.dispatcher.check()


def test_a_job_that_named_no_time_waits_for_as_long_as_there_is_a_gpu_that_may_be_its(
    service: Dispatching,
) -> None:
    service.start(nowhere=1, start_timeout=0.5, renew=0.2)
    new = service.submit()
    wait_for(lambda: service.status(new) == JobStatus.RUNNING, what="the claim")
    with pytest.raises(AssertionError, match="did not come about"):
        wait_for(lambda: service.status(new) != JobStatus.RUNNING, seconds=3)

    is_back = threading.Event()

    def hang() -> list[GpuNode]:
        # As Ray does while its GCS is away.
        is_back.wait(60)
        return []

    service.nodes = hang
    with pytest.raises(AssertionError, match="did not come about"):
        wait_for(lambda: service.status(new) != JobStatus.RUNNING, seconds=2)
    is_back.set()
    error = service.ended(new).job.error_json
    assert error is not None
    assert (error["code"], error["message"]) == ("no_capacity", "The cluster has no GPU.")
    assert error["details"] == {"asked_for": {"GPU": 1}, "cluster": {"GPU": 0, "nodes": 0}}


def test_a_process_that_stands_still_before_it_has_begun_is_ended(service: Dispatching) -> None:
    service.start("stand still before it begins", start_timeout=3, renew=0.3)
    new = service.submit()
    wait_for(lambda: service.killed, seconds=60, what="the end of the process")
    wait_for(lambda: len(service.killed) == 3, seconds=60, what="the end of the others")
    error = service.ended(new).job.error_json
    assert error is not None
    assert (error["code"], error["details"]["last"]["code"]) == ("attempts_exhausted", "runner_stalled")
    assert {lives_no_more(whereabouts.pid) for _, whereabouts in service.killed} == {True}


def lives_no_more(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return True
    wait_for(lambda: not lives(process), what="its end")
    return True


def test_one_that_has_waited_for_long_may_take_as_long_as_any_other_to_begin(service: Dispatching) -> None:
    service.nodes = lambda: [replace(ONE_GPU[0], gpus=2)]
    service.start("begin slowly and take its time", start_timeout=4, renew=0.3)
    jobs = [service.submit() for _ in range(3)]
    for new in jobs:
        record = service.ended(new)
        assert (record.job.status, record.steps[0].attempt) == (JobStatus.SUCCEEDED, 1), record.job.error_json
    starts = [started for new in jobs if (started := service.find(new).steps[0].started_at)]
    assert max(starts) - min(starts) > timedelta(seconds=4), "the third has waited for longer than a process may stall"


def test_a_step_that_began_in_time_may_take_its_time(service: Dispatching) -> None:
    service.start("take long")
    warm = service.submit()
    wait_for(lambda: service.find(warm).steps[0].started_at, what="the first one's start")
    # Shorter than the step, and than the pause between two renewals of its lease.
    record = service.ended(service.submit(start_timeout=15))
    assert (record.job.status, record.job.error_json) == (JobStatus.SUCCEEDED, None)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_slot_that_dies_leaves_its_step_to_the_others(service: Dispatching) -> None:
    service.refusals = 1
    service.start()
    record = service.ended(service.submit())
    assert (record.job.status, record.steps[0].attempt) == (JobStatus.SUCCEEDED, 2)
    rescued = [event.payload for event in service.jobs.events(record.job.id) if event.code == "step.rescued"]
    assert [payload["reason"] for payload in rescued] == ["node_lost"]
    assert record.steps[0].rescues == 0, "a new image has set it back"
    wait_for(lambda: _is_unhealthy(service, "slot"), what="the finding")


@pytest.mark.parametrize(
    ("behaviour", "codes", "attempts"),
    [
        ("raise", ["internal"], 1),
        ("lose the database", ["attempts_exhausted", "database_unavailable"], 3),
        ("die", ["poison", "runner_crashed"], 3),
    ],
)
def test_a_supervisor_that_ends_without_a_report_fails_its_own_step_only(
    service: Dispatching, behaviour: str, codes: list[str], attempts: int
) -> None:
    service.start(behaviour)
    jobs = [service.submit(), service.submit()]
    for new in jobs:
        record = service.ended(new)
        assert (record.job.status, record.steps[0].attempt) == (JobStatus.FAILED, attempts)
        error = record.job.error_json
        assert error is not None
        assert error == record.steps[0].error_json
        assert [error["code"], *([error["details"]["last"]["code"]] if codes[1:] else [])] == codes
        assert "hunter2" not in str(error)
        told = [event.code for event in service.jobs.events(new.id)]
        assert told[-2:] == ["step.failed", "job.failed"]
        assert told.count("step.retrying") == attempts - 1


def test_a_supervisor_that_dies_after_its_report_has_succeeded(service: Dispatching) -> None:
    service.start("die after the report")
    assert service.ended(service.submit()).job.status == JobStatus.SUCCEEDED


def test_a_gpu_that_is_not_clean_is_given_to_nobody_and_holds_no_job_up(service: Dispatching) -> None:
    service.start("hold the GPU", renew=0.2)
    assert service.ended(service.submit()).job.status == JobStatus.SUCCEEDED
    held = service.submitted[0]
    assert not ray.wait([held], timeout=0)[0], "its task goes on holding the first one"
    assert service.ended(service.submit()).job.status == JobStatus.SUCCEEDED, "the other one is left"
    waiting = service.submit()
    wait_for(lambda: len(service.submitted) == 3, what="the third task")
    with pytest.raises(AssertionError, match="did not come about"):
        wait_for(lambda: service.find(waiting).steps[0].started_at, seconds=2)
    ray.cancel(held, force=True)
    assert service.ended(waiting).job.status == JobStatus.SUCCEEDED, "now that it is clean"


def test_a_step_that_was_taken_away_is_left_alone(service: Dispatching) -> None:
    service.start("hang")
    new = service.submit()
    wait_for(lambda: service.find(new).steps[0].started_at, what="the start")
    with service.engine.begin() as connection:
        connection.execute(text("UPDATE steps SET lease_token = gen_random_uuid() WHERE job_id = :id"), {"id": new.id})
    ray.cancel(service.submitted[0], force=True)
    next_ = service.submit(start_timeout=30)
    wait_for(lambda: service.find(next_).steps[0].started_at, what="the next step's start")
    assert service.status(new) == JobStatus.RUNNING
    assert service.dispatcher is not None
    service.dispatcher.check()


@pytest.mark.parametrize("behaviour", ["hang", "stand still"])
def test_the_process_of_an_attempt_that_was_replaced_is_ended(
    service: Dispatching, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[Whereabouts] = []
    ask = ClaimStore.whereabouts

    def note(self: ClaimStore, fence: Fence) -> Whereabouts | None:
        whereabouts = ask(self, fence)
        known.extend([whereabouts] if whereabouts else [])
        return whereabouts

    monkeypatch.setattr(ClaimStore, "whereabouts", note)
    service.start(behaviour, renew=0.5)
    new = service.submit()
    wait_for(lambda: service.find(new).steps[0].started_at, what="the start")
    wait_for(lambda: known, what="the slot's knowledge of where that is")
    process = psutil.Process(known[0].pid)
    with service.engine.begin() as connection:
        connection.execute(text("UPDATE steps SET lease_token = gen_random_uuid() WHERE job_id = :id"), {"id": new.id})
    wait_for(lambda: not lives(process), seconds=30, what="its end")
    # Ray ends what still listens.
    assert [whereabouts.pid for _, whereabouts in service.killed] == ([process.pid] if behaviour != "hang" else [])
    assert service.status(new) == JobStatus.RUNNING, "nothing is written of it"


def test_leaving_it_puts_back_what_it_cannot_wait_for_and_the_next_one_finishes_it(service: Dispatching) -> None:
    service.start("hang", drain=0.3)
    new = service.submit()
    wait_for(lambda: service.find(new).steps[0].started_at, what="the start")
    assert service.dispatcher is not None
    began = time.monotonic()
    service.dispatcher.stop()
    assert time.monotonic() - began < 8
    (step,) = service.find(new).steps
    assert (step.status, step.attempt, step.lease_token, step.failures) == (StepStatus.QUEUED, 1, None, 0)
    rescued = service.jobs.events(new.id)[-1]
    assert (rescued.code, rescued.payload["reason"]) == ("step.rescued", "dispatcher_stopped")
    service.start()
    record = service.ended(new)
    assert (record.job.status, record.steps[0].attempt) == (JobStatus.SUCCEEDED, 2)


def test_leaving_it_cancels_what_was_to_be_cancelled_and_puts_none_of_it_back(service: Dispatching) -> None:
    service.start("hang", drain=0.3)
    new = service.submit()
    wait_for(lambda: service.find(new).steps[0].started_at, what="the start")
    service.jobs.cancel(new.id)
    assert service.status(new) == JobStatus.CANCELLING
    assert service.dispatcher is not None
    service.dispatcher.stop()
    record = service.find(new)
    assert (record.job.status, record.steps[0].status) == (JobStatus.CANCELLED, StepStatus.CANCELLED)
    assert [event.code for event in service.jobs.events(new.id)][-2:] == ["step.cancelled", "job.cancelled"]


def test_a_step_that_waits_for_a_gpu_is_cancelled_without_one(service: Dispatching) -> None:
    service.start(nowhere=1)
    new = service.submit()
    wait_for(lambda: service.status(new) == JobStatus.RUNNING, what="the claim")
    service.jobs.cancel(new.id)
    wait_for(lambda: service.status(new) == JobStatus.CANCELLED, seconds=5, what="the cancel")
    assert service.find(new).steps[0].started_at is None


def test_a_supervisor_that_is_lost_while_cancelling_leaves_a_cancelled_job(service: Dispatching) -> None:
    service.start("hang")
    new = service.submit()
    wait_for(lambda: service.find(new).steps[0].started_at, what="the start")
    service.jobs.cancel(new.id)
    ray.cancel(service.submitted[0], force=True)
    record = service.ended(new)
    assert (record.job.status, record.job.error_json) == (JobStatus.CANCELLED, None)


def test_leaving_it_waits_for_what_ends_in_time_and_claims_nothing_more(service: Dispatching) -> None:
    service.start(drain=30)
    first = service.submit()
    wait_for(lambda: service.status(first) != JobStatus.QUEUED, what="the claim")
    assert service.dispatcher is not None
    service.dispatcher.stop()
    assert service.status(first) == JobStatus.SUCCEEDED
    late = service.submit()
    with pytest.raises(AssertionError, match="did not come about"):
        wait_for(lambda: service.status(late) != JobStatus.QUEUED, seconds=1.5)


def test_slots_follow_the_cluster_s_gpus_and_one_more(service: Dispatching) -> None:
    nodes = [GpuNode(id="a", address="10.0.0.1", gpus=1)]
    service.nodes = lambda: nodes
    service.start()
    wait_for(lambda: service.slots() == 2, what="two slots")
    nodes.append(GpuNode(id="b", address="10.0.0.2", gpus=4))
    wait_for(lambda: service.slots() == 6, what="six slots")
    nodes.clear()
    wait_for(lambda: service.slots() == 1, what="one slot")
    assert service.dispatcher is not None
    service.dispatcher.check()


def test_the_cluster_tells_its_gpu_nodes() -> None:
    (node,) = gpu_nodes()
    assert (node.address, node.gpus) == (ray.util.get_node_ip_address(), 2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_slot_is_unhealthy(service: Dispatching) -> None:
    service.start()
    wait_for(lambda: service.slots() == 2, what="the slots")
    assert service.dispatcher is not None
    service.dispatcher.check()

    def fail() -> uuid.UUID:
        raise RuntimeError("nobody foresaw this")

    service.new_token = fail
    service.submit()
    wait_for(lambda: _is_unhealthy(service, "slot"), what="the finding")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_loop_is_unhealthy(service: Dispatching) -> None:
    service.start()
    wait_for(lambda: service.slots() == 2, what="the slots")

    def fail() -> list[GpuNode]:
        raise SystemExit

    service.nodes = fail
    wait_for(lambda: _is_unhealthy(service, "capacity"), what="the finding")


def test_a_loop_goes_on_after_an_error(service: Dispatching) -> None:
    def fail() -> list[GpuNode]:
        raise ValueError("once")

    service.nodes = fail
    service.start()
    new = service.submit()
    service.nodes = lambda: ONE_GPU
    assert service.ended(new).job.status == JobStatus.SUCCEEDED
    assert not _is_unhealthy(service, "")


def _is_unhealthy(service: Dispatching, name: str) -> bool:
    assert service.dispatcher is not None
    try:
        service.dispatcher.check()
    except RuntimeError as error:
        return name in str(error)
    return False
