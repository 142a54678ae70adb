"""`dreamforge up` from its start to its end: what it leaves behind, and what it says when it cannot start."""

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from dreamforge.embedded.object_store import ObjectStore
from tests.running_stack import DREAMFORGE, RunningStack, lives, wait_for
from tests.terminal import TAKE_TERMINAL
from tests.web import web

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[RunningStack]:
    stack = RunningStack(data_dir=tmp_path / "data")
    stack.data_dir.mkdir()
    yield stack
    if hasattr(stack, "process"):
        stack.kill()


def _marked(stack: RunningStack) -> list[psutil.Process]:
    """Every process on the machine that knows the stack's data folder."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            knows = [*process.cmdline(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if process.pid != os.getpid() and any(str(stack.data_dir) in value for value in knows):
            found.append(process)
    return found


def _living(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if lives(process)]


def _assert_nothing_left(stack: RunningStack, family: list[psutil.Process]) -> None:
    assert not _living(family)
    assert not _marked(stack)


def test_ctrl_c_ends_everything_within_20_seconds_and_the_data_are_there_afterwards(own_stack: RunningStack) -> None:
    own_stack.variables["DREAMFORGE_SELF_CHECK"] = "true"
    own_stack.variables["RAY_AUTH_TOKEN"] = "of-another-cluster"
    own_stack.variables["DREAMFORGE_DRAIN_TIMEOUT"] = "2"
    own_stack.start()
    own_stack.wait_until_ready()
    job = own_stack.run(count=2, params={"prompt": "kept", "seed": 3})
    images = [web.get(artifact["url"]).content for artifact in own_stack.artifacts(job)]
    # Too much for the drain: it is put back, and goes on when the service is there again.
    long = own_stack.post(count=8, params={"prompt": "long", "seed": 0, "steps": 40}).json()
    wait_for(lambda: own_stack.artifacts(long), what="the long job's first image")
    family = own_stack.family()
    assert len(family) > 10

    began = time.monotonic()
    own_stack.send(signal.SIGINT)
    assert own_stack.wait_for_end() == 0
    assert time.monotonic() - began < 20
    _assert_nothing_left(own_stack, family)

    own_stack.start()
    own_stack.wait_until_ready()
    assert "Self-check left out: 1 job goes first" in own_stack.said()
    kept = own_stack.get(job["links"]["self"]).json()
    assert (kept["status"], kept["params"]["prompt"]) == ("succeeded", "kept")
    assert [web.get(artifact["url"]).content for artifact in own_stack.artifacts(kept)] == images
    ended = own_stack.wait_for_job(long["id"], seconds=200)
    assert (ended["status"], ended["steps"][0]["attempt"]) == ("succeeded", 2)
    assert [artifact["seed"] for artifact in _all_artifacts(own_stack, ended)] == list(range(8))

    family = own_stack.family()
    own_stack.send(signal.SIGTERM)
    assert own_stack.wait_for_end() == 0
    _assert_nothing_left(own_stack, family)


def _all_artifacts(stack: RunningStack, job: dict[str, object]) -> list[dict[str, object]]:
    return stack.get(f"/v1/jobs/{job['id']}/artifacts?limit=200").json()["items"]


@pytest.mark.parametrize("sign", ["PostgreSQL: starting", "Ray: starting", "Service: deploying"])
def test_ctrl_c_while_it_starts_leaves_nothing(own_stack: RunningStack, sign: str) -> None:
    own_stack.start()
    wait_for(lambda: sign in own_stack.said(), what=sign)
    family = own_stack.family()
    own_stack.send(signal.SIGINT)
    assert own_stack.wait_for_end() == 0
    _assert_nothing_left(own_stack, family)


def test_killed_outright_it_takes_its_servers_along_and_starts_again_at_once(own_stack: RunningStack) -> None:
    own_stack.start()
    wait_for(lambda: "Service: deploying" in own_stack.said(), what="the deployment")
    family = own_stack.family()
    own_stack.send(signal.SIGKILL)
    own_stack.wait_for_end()

    own_stack.start()
    own_stack.wait_until_ready()
    # Ray's agents look for their raylet only now and then.
    wait_for(lambda: not _living(family), seconds=90, what="the servers' end", instead=lambda: _living(family))
    family = own_stack.family()
    own_stack.send(signal.SIGINT)
    assert own_stack.wait_for_end() == 0
    wait_for(lambda: not _marked(own_stack), what="the workers' end", instead=lambda: _marked(own_stack))
    _assert_nothing_left(own_stack, family)


@pytest.mark.parametrize("reader", ["a pipe", "a terminal"])
def test_it_stops_in_order_when_nobody_reads_what_it_says(own_stack: RunningStack, reader: str) -> None:
    ours, theirs = os.pipe() if reader == "a pipe" else pty.openpty()
    own_stack.process = subprocess.Popen(
        [*((sys.executable, "-c", TAKE_TERMINAL) if reader == "a terminal" else ()), *DREAMFORGE, "up"],
        env=own_stack.environment,
        stdin=theirs if reader == "a terminal" else subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    log = own_stack.data_dir / "logs" / "up.log"
    wait_for(lambda: log.exists() and "Ray: starting" in log.read_text(), what="its log")
    family = own_stack.family()
    # A terminal that is closed says so by SIGHUP.
    os.close(ours)
    if reader == "a pipe":
        own_stack.send(signal.SIGINT)
    assert own_stack.wait_for_end() == 0
    _assert_nothing_left(own_stack, family)
    assert "✓ Stopped" in log.read_text()


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("PORT", "the API"),
        ("POSTGRES_PORT", "PostgreSQL"),
        ("REDIS_PORT", "Valkey"),
        ("S3_PORT", "the S3 server"),
        ("RAY_PORT", "Ray"),
        ("DASHBOARD_PORT", "the Ray dashboard"),
    ],
)
def test_a_taken_port_is_named_with_the_setting_that_moves_it(own_stack: RunningStack, name: str, what: str) -> None:
    port = own_stack.ports[name]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        own_stack.start()
        assert own_stack.wait_for_end() == 1
    said = own_stack.said()
    assert f"✗ Port {port}, for {what}, is taken (Address already in use). Set DREAMFORGE_{name} to another" in said
    assert "Traceback" not in said


def test_two_settings_with_one_port_are_named(own_stack: RunningStack) -> None:
    port = own_stack.ports["S3_PORT"] = own_stack.ports["PORT"]
    own_stack.start()
    assert own_stack.wait_for_end() == 1
    assert f"✗ DREAMFORGE_PORT and DREAMFORGE_S3_PORT are both {port}." in own_stack.said()


def test_a_second_one_over_the_same_data_says_so(own_stack: RunningStack) -> None:
    own_stack.start()
    wait_for(lambda: "Schema" in own_stack.said(), what="the servers")
    second = RunningStack(data_dir=own_stack.data_dir)
    second.output = own_stack.data_dir / "second.out"
    second.start()
    assert second.wait_for_end() == 0
    assert "is running over" in second.said()
    assert "dreamforge status" in second.said()
    assert own_stack.process.poll() is None


def test_a_wrong_setting_is_named(own_stack: RunningStack) -> None:
    own_stack.ports["PORT"] = 0
    own_stack.start()
    assert own_stack.wait_for_end() == 1
    assert "DREAMFORGE_PORT" in own_stack.said()
    assert "Traceback" not in own_stack.said()


def test_servers_of_one_s_own_are_used_instead_of_embedded_ones(
    tmp_path: Path, empty_database_url: str, redis_url: str, object_store: ObjectStore
) -> None:
    stack = RunningStack(
        data_dir=tmp_path,
        DREAMFORGE_DATABASE_URL=empty_database_url,
        DREAMFORGE_REDIS_URL=redis_url,
        DREAMFORGE_S3_ENDPOINT=object_store.endpoint,
        DREAMFORGE_S3_ACCESS_KEY=object_store.access_key,
        DREAMFORGE_S3_SECRET_KEY=object_store.secret_key,
        DREAMFORGE_S3_BUCKET="of-my-own",
    )
    stack.start()
    try:
        stack.wait_until_ready()
        assert set(stack.state()["parts"]) == {"ray"}
        assert not [name for name in ("postgres", "valkey", "s3") if (tmp_path / name).exists()]
        (artifact,) = stack.artifacts(stack.run(params={"prompt": "elsewhere"}))
        assert artifact["url"].startswith(f"{object_store.endpoint}/of-my-own/")
        assert web.get(artifact["url"]).status_code == 200
        with psycopg.connect(empty_database_url) as connection:
            assert connection.execute("SELECT count(*) FROM jobs WHERE status = 'succeeded'").fetchone() == (1,)
    finally:
        stack.kill()
