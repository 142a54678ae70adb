"""Every kind of process is killed, or stands still, during a job or between two: each job ends once, and whole."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx2
import psutil
import pytest

from tests.running_stack import RunningStack, lives, wait_for

pytestmark = pytest.mark.timeout(400)

LEASE = 6.0
COUNT = 6
STEPS = 25
TERMINAL = {"job.succeeded", "job.failed", "job.cancelled"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack with short leases, whose processes may be killed."""
    stack = RunningStack(
        data_dir=tmp_path_factory.mktemp("mortal"),
        DREAMFORGE_LEASE_SECONDS=str(LEASE),
        DREAMFORGE_LEASE_RENEW_SECONDS="1",
        DREAMFORGE_RETRY_PAUSE="0.2",
        DREAMFORGE_DRAIN_TIMEOUT="1",
    )
    with stack.ready():
        yield stack


def _begun(stack: RunningStack, *, seed: int, count: int = COUNT) -> dict[str, Any]:
    """A job that has made its first image and has others to make."""
    job = stack.post(count=count, params={"prompt": "mortal", "seed": seed, "steps": STEPS}).json()
    wait_for(lambda: stack.artifacts(job), seconds=90, what="the first image")
    return job


def _supervisor(stack: RunningStack, job: dict[str, Any]) -> psutil.Process:
    """The Ray worker that runs the job's step: Ray shows its task's name as its title."""
    return _found(stack, lambda words: f"ray::generate {job['id']}" in words)


def _runner(stack: RunningStack) -> psutil.Process:
    return _found(stack, lambda words: "-m dreamforge.runners.process" in words)


def _found(stack: RunningStack, fits: Callable[[str], bool]) -> psutil.Process:
    for process in stack.family():
        try:
            if fits(" ".join(process.cmdline())) and lives(process):
                return process
        except psutil.NoSuchProcess:
            continue
    raise AssertionError("there is no such process")


@contextmanager
def _frozen(process: psutil.Process) -> Generator[None]:
    """The process stands still for the block, and for two leases at least."""
    process.suspend()
    until = time.monotonic() + 2 * LEASE
    try:
        yield
        wait_for(lambda: time.monotonic() >= until, seconds=3 * LEASE, what="two leases to pass")
    finally:
        process.resume()


def _assert_whole(stack: RunningStack, job: dict[str, Any], *, attempts: int) -> list[dict[str, Any]]:
    """It ends once, with each image made once; its events."""
    ended = stack.wait_for_job(job["id"], seconds=200)
    assert ended["status"] == "succeeded", ended["error"]
    images = stack.artifacts(ended)
    assert [image["item_index"] for image in images] == list(range(job["count"]))
    assert [image["seed"] for image in images] == [job["params"]["seed"] + index for index in range(job["count"])]
    events = stack.events(ended)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    codes = Counter(event["code"] for event in events)
    assert sum(codes[code] for code in TERMINAL) == 1
    assert codes["item.finished"] == codes["artifact.created"] == job["count"], "no finished image is made again"
    assert ended["steps"][0]["attempt"] == attempts
    return events


def _reasons(events: list[dict[str, Any]]) -> list[str]:
    """Why there was another attempt, each time."""
    again = [event["payload"] for event in events if event["code"] in {"step.retrying", "step.rescued"}]
    return [payload["reason"] if "reason" in payload else payload["error"]["code"] for payload in again]


def test_a_runner_is_killed(stack: RunningStack) -> None:
    job = _begun(stack, seed=10)
    _runner(stack).kill()
    assert _reasons(_assert_whole(stack, job, attempts=2)) == ["runner_crashed"]


def test_a_supervisor_is_killed_and_takes_its_runner_along(stack: RunningStack) -> None:
    job = _begun(stack, seed=20)
    runner = _runner(stack)
    _supervisor(stack, job).kill()
    wait_for(lambda: not lives(runner), seconds=5, what="its runner's end")
    assert _reasons(_assert_whole(stack, job, attempts=2)) == ["runner_crashed"]


def test_a_supervisor_stands_still_beyond_its_lease(stack: RunningStack) -> None:
    job = _begun(stack, seed=30)
    frozen = _supervisor(stack, job)
    frozen.suspend()
    # There is one GPU, which Ray gives to nobody while the process is there.
    assert _reasons(_assert_whole(stack, job, attempts=2)) == ["node_lost"]
    assert not lives(frozen)


def test_a_dispatcher_is_killed(stack: RunningStack) -> None:
    job = _begun(stack, seed=40)
    (killed,) = stack.replicas("dispatcher:Dispatcher")
    killed.kill()
    # Ray ends the tasks of an owner that has died, so the lease runs out.
    assert _reasons(_assert_whole(stack, job, attempts=2)) == ["node_lost"]


def test_a_dispatcher_stands_still_for_longer_than_a_lease(stack: RunningStack) -> None:
    job = _begun(stack, seed=50)
    (frozen,) = stack.replicas("dispatcher:Dispatcher")
    with _frozen(frozen):
        wait_for(lambda: len(stack.artifacts(job)) == COUNT, seconds=120, what="every image, made without it")
    _assert_whole(stack, job, attempts=1)


def test_every_replica_of_the_api_is_killed(stack: RunningStack) -> None:
    job = _begun(stack, seed=60)
    for replica in stack.replicas("api:Api"):
        replica.kill()
    wait_for(lambda: _answers(stack), seconds=60, what="an answer")
    _assert_whole(stack, job, attempts=1)


def test_every_replica_of_the_api_stands_still_for_longer_than_a_lease(stack: RunningStack) -> None:
    job = _begun(stack, seed=62)
    with ExitStack() as frozen:
        for replica in stack.replicas("api:Api"):
            frozen.enter_context(_frozen(replica))
    wait_for(lambda: _answers(stack), seconds=60, what="an answer")
    _assert_whole(stack, job, attempts=1)


def _answers(stack: RunningStack) -> bool:
    try:
        return stack.get("/readyz").status_code == 200
    except httpx2.TransportError:
        # A replica that is killed with a request under way may take the connection along.
        return False


def test_a_new_version_is_deployed_under_load(stack: RunningStack) -> None:
    # Longer than the whole change takes.
    running = _begun(stack, seed=65, count=40)
    (former,) = stack.replicas("dispatcher:Dispatcher")
    stack.deploy_again(api={"max_ongoing_requests": 3998}, dispatcher={"database_connections": 15})
    posted: list[dict[str, Any]] = []

    def has_left() -> bool:
        if len(posted) < 4:
            answer = stack.post(params={"prompt": "meanwhile", "steps": 1})
            assert answer.status_code == 201, answer.text
            posted.append(answer.json())
        return not lives(former)

    wait_for(has_left, seconds=120, what="the end of the former dispatcher")
    # What it could not wait for it has put back, which counts as no failure of the step's.
    assert _reasons(_assert_whole(stack, running, attempts=2)) == ["dispatcher_stopped"]
    assert {stack.wait_for_job(job["id"], seconds=200)["status"] for job in posted} == {"succeeded"}


@pytest.mark.parametrize("command", ["raylet/raylet", "gcs_server"])
def test_a_server_of_ray_s_stands_still_for_longer_than_a_lease(stack: RunningStack, command: str) -> None:
    job = _begun(stack, seed=67)
    with _frozen(_found(stack, lambda words: command in words)):
        pass
    # Ray may have given it up, and all that it ran with it, or may not have noticed.
    attempts = stack.wait_for_job(job["id"], seconds=300)["steps"][0]["attempt"]
    assert set(_reasons(_assert_whole(stack, job, attempts=attempts))) <= {"node_lost"}


@pytest.mark.parametrize(
    ("command", "number"),
    # As `ray stop` ends it, after which `ray start` itself lives on.
    [("raylet/raylet", signal.SIGTERM), ("gcs_server", signal.SIGKILL)],
)
def test_a_server_of_ray_s_ends(stack: RunningStack, command: str, number: signal.Signals) -> None:
    job = _begun(stack, seed=70)
    runner = _runner(stack)
    before = len(stack.said())
    os.kill(_found(stack, lambda words: command in words).pid, number)
    wait_for(lambda: not lives(runner), seconds=120, what="the runner's end")
    _assert_back(stack, "Ray", since=before)
    # On a busy machine the next one may be lost as well, to Ray's coming back in parts.
    attempts = stack.wait_for_job(job["id"], seconds=300)["steps"][0]["attempt"]
    assert 2 <= attempts <= 3
    assert set(_reasons(_assert_whole(stack, job, attempts=attempts))) == {"node_lost"}


@pytest.mark.parametrize(
    ("part", "title"), [("postgres", "PostgreSQL"), ("valkey", "Valkey"), ("s3", "S3"), ("ray", "Ray")]
)
def test_a_server_that_is_killed_between_two_jobs_is_started_again(stack: RunningStack, part: str, title: str) -> None:
    before = len(stack.said())
    os.kill(_pid_of(stack, part), signal.SIGKILL)
    _assert_back(stack, title, since=before)
    wait_for(lambda: stack.get("/readyz").json()["status"] == "ok", what="readiness")
    job = stack.run(params={"prompt": f"after {title}", "seed": 1})
    assert job["status"] == "succeeded", job["error"]


def _pid_of(stack: RunningStack, part: str) -> int:
    return stack.state()["parts"][part]["pid"]


def _assert_back(stack: RunningStack, title: str, *, since: int) -> None:
    """It is told in one line that the part has ended, and in one that it is back."""

    def news() -> list[str]:
        # It may still be printing what to do with it, now that it is ready.
        return [line for line in stack.said()[since:].splitlines() if line.startswith(("!", "✓"))]

    wait_for(lambda: any(f"{title} is back" in line for line in news()), seconds=200, what=title, instead=news)
    # A busy machine may need more than one try.
    ended, *_, back = news()
    assert ended.startswith(f"! {title} has ended (")
    assert back.startswith(f"✓ {title} is back")
    assert "Traceback" not in stack.said()


def test_what_was_there_before_all_this_is_there_still(stack: RunningStack) -> None:
    job = stack.run(params={"prompt": "kept", "seed": 2})
    before = stack.said().count("Valkey is back")
    for part in ("postgres", "valkey"):
        os.kill(_pid_of(stack, part), signal.SIGKILL)
    wait_for(lambda: stack.said().count("Valkey is back") == before + 1, what="both servers")
    wait_for(lambda: stack.get(job["links"]["self"]).status_code == 200, what="the job")
    assert stack.get(job["links"]["self"]).json() == job
