"""A node that runs out of memory, where Ray watches over it."""

from collections.abc import Iterator

import psutil
import pytest
import ray

from dreamforge.jobs.job import JobStatus
from tests.figures import Tell
from tests.integration.dispatching import Dispatching

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("cluster")]

_ROOM = 3 * 2**30
"""Bytes that whatever runs may take beyond what is in use, by then Ray kills it. Others on the machine need some."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster with a GPU that is none, and not much memory left."""
    memory = psutil.virtual_memory()
    if memory.available < 4 * _ROOM:
        pytest.skip(f"it takes {4 * _ROOM >> 30} GiB of free memory to take some of it safely")
    threshold = (memory.total - memory.available + _ROOM) / memory.total
    ray.init(
        address="local",
        num_cpus=1,
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _system_config={"memory_usage_threshold": threshold, "memory_monitor_refresh_ms": 100},
    )
    yield
    ray.shutdown()


def test_what_ray_kills_for_memory_is_told_from_a_crash_and_tried_again(service: Dispatching, tell: Tell) -> None:
    service.start("take a lot of memory")
    record = service.ended(service.submit())
    assert (record.job.status, record.steps[0].attempt) == (JobStatus.FAILED, 3)
    error = record.job.error_json
    assert error is not None
    assert (error["code"], error["details"]["last"]["code"]) == ("attempts_exhausted", "host_oom")
    retried = [event.payload for event in service.jobs.events(record.job.id) if event.code == "step.retrying"]
    assert {payload["error"]["code"] for payload in retried} == {"host_oom"}
    assert record.steps[0].crashes == 0
    tell("Node out of memory, found by Ray", attempts=record.steps[0].attempt)
