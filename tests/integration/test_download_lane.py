"""The lane of downloads, over a real Ray, Postgres and Valkey; only the download is played, in real Ray tasks."""

import os
import signal
import time

import pytest
import ray
from sqlalchemy import text

from dreamforge.jobs.job import JobStatus, Lane, StepStatus
from dreamforge.queue import Ticket, TicketQueue, connect
from dreamforge.store.jobs import NewJob
from tests.integration.dispatching import Dispatching
from tests.service import wait_for

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("cluster")]


def _download_slots(service: Dispatching) -> int | None:
    with service.engine.connect() as connection:
        query = text("SELECT (info_json->>'download_slots')::int FROM heartbeats WHERE kind = 'dispatcher'")
        return connection.scalar(query)


def _has_begun(service: Dispatching, new: NewJob) -> bool:
    return service.find(new).steps[0].started_at is not None


def test_a_download_is_run_while_every_gpu_is_busy_and_takes_none_of_their_slots(service: Dispatching) -> None:
    service.start("hang", downloads=1)
    drawn = [service.submit() for _ in range(2)]
    wait_for(lambda: all(service.status(new) == JobStatus.RUNNING for new in drawn), what="both slots at work")
    new = service.submit_download()
    record = service.ended(new)
    assert (record.job.status, record.job.items_done, record.job.progress) == (JobStatus.SUCCEEDED, 1, 1.0)
    assert service.images() == []
    assert (service.slots(), _download_slots(service)) == (2, 1)


def test_a_cluster_without_gpus_downloads_all_the_same(service: Dispatching) -> None:
    service.nodes = list
    service.start(downloads=1)
    assert service.ended(service.submit_download()).job.status == JobStatus.SUCCEEDED


def test_one_that_ray_does_not_place_waits_and_can_be_cancelled(service: Dispatching) -> None:
    service.nodes = list
    service.start(downloads=1, download="nowhere", start_timeout=0.5, renew=0.2)
    new = service.submit_download()
    wait_for(lambda: service.status(new) == JobStatus.RUNNING, what="the claim")
    with pytest.raises(AssertionError, match="did not come about"):
        wait_for(lambda: service.status(new) != JobStatus.RUNNING, seconds=2)
    service.jobs.cancel(new.id)
    assert service.ended(new).job.status == JobStatus.CANCELLED


def test_no_more_are_run_at_once_than_there_are_slots(service: Dispatching) -> None:
    service.start(downloads=1, download="take a moment")
    first, second = service.submit_download(), service.submit_download()
    wait_for(lambda: _has_begun(service, first), what="the first one's start")
    wait_for(
        lambda: service.status(first) == JobStatus.SUCCEEDED, what="its end", instead=lambda: service.status(second)
    )
    ended, began = service.find(first).steps[0].finished_at, service.ended(second).steps[0].started_at
    assert ended is not None
    assert began is not None
    assert began >= ended


def test_a_ticket_of_its_own_queue_wakes_a_slot_that_waits(service: Dispatching, redis_url: str) -> None:
    service.start(outbox=3600, downloads=1)
    wait_for(lambda: _download_slots(service) == 1, what="the slot")
    # Two for GPUs wait as well.
    wait_for(lambda: _waiting(redis_url) == 3, what="the slots' wait")
    new = service.submit_download()
    ticket = Ticket(step_id=str(new.step_ids[0]), job_id=str(new.id), step="download", attempt=0, request_id="test")
    TicketQueue(redis=connect(redis_url), lane=Lane.IO).push(ticket)
    assert service.ended(new).job.status == JobStatus.SUCCEEDED


def _waiting(redis_url: str) -> int:
    clients: list[dict[str, str]] = connect(redis_url).client_list()  # type: ignore[assignment] - it is no awaitable
    return sum(client["cmd"] in {"blmove", "brpoplpush"} for client in clients)


def test_one_whose_process_is_killed_is_tried_again_and_a_model_that_is_there_stays(service: Dispatching) -> None:
    service.start(downloads=1, download="take its time", renew=0.2)
    new = service.submit_download()
    wait_for(lambda: _has_begun(service, new), what="its start")
    os.kill(service.find(new).steps[0].metadata_json["supervisor_pid"], signal.SIGKILL)
    record = service.ended(new)
    assert (record.job.status, record.steps[0].attempt) == (JobStatus.SUCCEEDED, 2)
    assert "step.retrying" in [event.code for event in service.jobs.events(new.id)]


def test_one_that_dies_after_the_model_is_there_is_not_tried_again(service: Dispatching) -> None:
    service.start(downloads=1, download="die after the report")
    record = service.ended(service.submit_download())
    assert (record.job.status, record.steps[0].attempt) == (JobStatus.SUCCEEDED, 1)


def test_leaving_it_puts_a_download_back_uncounted(service: Dispatching) -> None:
    service.start(downloads=1, download="hang", drain=0.3)
    new = service.submit_download()
    wait_for(lambda: _has_begun(service, new), what="its start")
    assert service.dispatcher is not None
    began = time.monotonic()
    service.dispatcher.stop()
    assert time.monotonic() - began < 20
    (step,) = service.find(new).steps
    assert (step.status, step.failures, step.crashes, step.rescues) == (StepStatus.QUEUED, 0, 0, 0)


def test_a_dispatcher_without_slots_for_it_leaves_it_to_another(service: Dispatching) -> None:
    service.start()
    new = service.submit_download()
    assert service.ended(service.submit()).job.status == JobStatus.SUCCEEDED
    assert service.status(new) == JobStatus.QUEUED
    assert service.dispatcher is not None
    service.dispatcher.check()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_slot_for_downloads_is_unhealthy(service: Dispatching) -> None:
    service.start(downloads=1)
    wait_for(lambda: _download_slots(service) == 1, what="the slot")

    def fail() -> None:
        raise RuntimeError("nobody foresaw this")

    service.new_token = fail  # type: ignore[assignment] - it gives none
    service.submit_download()

    def is_unhealthy() -> bool:
        assert service.dispatcher is not None
        try:
            service.dispatcher.check()
        except RuntimeError as error:
            return "download slot" in str(error)
        return False

    wait_for(is_unhealthy, what="the finding")
    assert ray.is_initialized()
