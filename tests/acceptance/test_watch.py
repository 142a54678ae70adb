"""What ends by itself is started again, and jobs go on."""

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from tests.running_stack import RunningStack, command_of, lives, wait_for

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack whose servers may be killed."""
    with RunningStack(data_dir=tmp_path_factory.mktemp("watched")).ready() as stack:
        yield stack


def _process_of(stack: RunningStack, part: str, command: str | None) -> int:
    pid = stack.state()["parts"][part]["pid"]
    if command is None:
        return pid
    (found,) = [child.pid for child in psutil.Process(pid).children() if command in command_of(child)]
    return found


@pytest.mark.parametrize(
    ("part", "title", "command", "number"),
    [
        ("postgres", "PostgreSQL", None, signal.SIGKILL),
        ("valkey", "Valkey", None, signal.SIGKILL),
        ("s3", "S3", None, signal.SIGKILL),
        ("ray", "Ray", None, signal.SIGKILL),
        ("ray", "Ray", "gcs_server", signal.SIGKILL),
        # As `ray stop` ends it, after which `ray start` itself lives on.
        ("ray", "Ray", "raylet/raylet", signal.SIGTERM),
    ],
    ids=["postgres", "valkey", "s3", "ray", "the GCS", "the raylet"],
)
def test_a_server_that_has_ended_is_started_again_and_draws(
    watched: RunningStack, part: str, title: str, command: str | None, number: signal.Signals
) -> None:
    before = len(watched.said().splitlines())
    os.kill(_process_of(watched, part, command), number)

    def news() -> list[str]:
        # It may still be printing what to do with it, now that it is ready.
        return [line for line in watched.said().splitlines()[before:] if line.startswith(("!", "✓"))]

    wait_for(lambda: any(f"{title} is back" in line for line in news()), seconds=200, what=title, instead=news)
    wait_for(lambda: watched.get("/readyz").json()["status"] == "ok", what="readiness")
    job = watched.run(params={"prompt": f"after {title}", "seed": 1})
    assert job["status"] == "succeeded", job["error"]
    # A busy machine may need more than one try.
    ended, *_, back = news()
    assert ended.startswith(f"! {title} has ended (")
    assert back.startswith(f"✓ {title} is back")
    assert "Traceback" not in watched.said()


def test_what_was_there_before_all_this_is_there_still(watched: RunningStack) -> None:
    job = watched.run(params={"prompt": "kept", "seed": 2})
    os.kill(_process_of(watched, "postgres", None), signal.SIGKILL)
    os.kill(_process_of(watched, "valkey", None), signal.SIGKILL)
    wait_for(lambda: watched.said().count("Valkey is back") == 2, what="both servers")
    wait_for(lambda: watched.get(job["links"]["self"]).status_code == 200, what="the job")
    assert watched.get(job["links"]["self"]).json() == job


def test_a_killed_dispatcher_is_replaced_and_draws(watched: RunningStack) -> None:
    (killed,) = watched.replicas("dispatcher:Dispatcher")
    assert not watched.get("/v1/jobs?status=queued&status=running").json()["items"], "nobody brings back what it ran"
    killed.kill()
    wait_for(lambda: not lives(killed), what="its end")
    job = watched.run(params={"prompt": "after the dispatcher", "seed": 1})
    assert job["status"] == "succeeded", job["error"]
    (replacement,) = watched.replicas("dispatcher:Dispatcher")
    assert replacement.pid != killed.pid
