"""`dreamforge up --detach`, `status`, `logs` and `down`, as a person types them."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.running_stack import RunningStack, wait_for

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def detached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack in the background, started by `up --detach`."""
    stack = RunningStack(data_dir=tmp_path_factory.mktemp("detached"), DREAMFORGE_SELF_CHECK="true")
    result = stack.command("up", "--detach", seconds=150)
    stack.output.write_text(result.stdout + result.stderr)
    try:
        assert result.returncode == 0, stack.said()
        yield stack
    finally:
        stack.command("down")


def test_detached_it_shows_its_start_and_goes_on_in_the_background(detached: RunningStack) -> None:
    said = detached.said()
    for line in ("✓ PostgreSQL 18", "✓ Self-check", "Dream Forge is ready", "  API            http://127.0.0.1:"):
        assert line in said
    assert "Ctrl-C" not in said
    assert said.rstrip().splitlines()[-1].startswith("It goes on in the background")
    assert detached.get("/readyz").json()["status"] == "ok"


def test_status_tells_what_runs_where_and_since_when(detached: RunningStack) -> None:
    result = detached.command("status", "--json")
    assert result.returncode == 0
    status = json.loads(result.stdout)
    assert (status["running"], status["readiness"], status["api"]) == (True, "ok", detached.base_url)
    assert [part["name"] for part in status["parts"]] == ["postgres", "valkey", "s3", "ray"]
    for part in status["parts"]:
        assert part["running"]
        assert part["version"]
        assert 0 < part["seconds"] < 1000
        assert part["memory_mib"] > 0
        assert psutil.pid_exists(part["pid"])
    assert {part["address"] for part in status["parts"]} == {
        f"127.0.0.1:{detached.ports['POSTGRES_PORT']}",
        f"127.0.0.1:{detached.ports['REDIS_PORT']}",
        f"http://127.0.0.1:{detached.ports['S3_PORT']}",
        f"127.0.0.1:{detached.ports['RAY_PORT']}",
    }
    assert status["disk_mib"]["postgres"] > 10
    table = detached.command("status").stdout
    assert f"API: {detached.base_url} is ok" in table
    assert len([line for line in table.splitlines() if " running " in line]) == 4


def test_a_second_up_says_so_and_leaves_the_first_alone(detached: RunningStack) -> None:
    for arguments in (["up"], ["up", "--detach"]):
        result = detached.command(*arguments)
        assert result.returncode == 0
        assert f"A stack is running over {detached.data_dir} already." in result.stdout
        assert detached.base_url in result.stdout
    assert detached.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("up", "Dream Forge is ready"),
        ("postgres", "database system is ready"),
        ("valkey", "Ready to accept connections"),
        ("ray", "Ray runtime started"),
        ("dispatcher", "claimed"),
        ("steps", "generate"),
        ("s3", "Starting s3 server"),
    ],
)
def test_logs_shows_what_a_part_has_written(detached: RunningStack, name: str, word: str) -> None:
    result = detached.command("logs", name, "-n", "1000")
    assert result.returncode == 0
    assert word in result.stdout


def test_logs_shows_all_parts_where_none_is_named(detached: RunningStack) -> None:
    said = detached.command("logs", "-n", "1").stdout
    for name in ("up.log", "postgres.log", "valkey.log", "ray.log"):
        assert f"{name} <==" in said


def test_a_model_of_one_s_own_draws(detached: RunningStack, tmp_path: Path) -> None:
    assert detached.models_dir is not None
    (built,) = detached.models_dir.glob("sdxl/*")
    imported = detached.command("model", "import", str(shutil.copytree(built, tmp_path / "my-xl")), "--no-default")
    assert imported.returncode == 0, imported.stderr
    job = detached.run(model_id="my-xl", params={"prompt": "mine", "width": 64, "height": 64, "steps": 2})
    assert job["status"] == "succeeded", job["error"]
    assert "draws noise" in detached.said()
    assert "dreamforge model import PATH" in detached.get("/v1/models/sdxl-tiny").json()["metadata"]["description"]


def test_detached_it_says_why_it_did_not_start(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "valkey_password").touch()
    result = RunningStack(data_dir=tmp_path).command("up", "--detach")
    assert result.returncode == 1
    assert f"✗ {tmp_path}/secrets/valkey_password is empty" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_of_two_that_start_in_the_background_at_once_one_says_that_the_other_runs(tmp_path: Path) -> None:
    stack = RunningStack(data_dir=tmp_path)
    both = [stack.spawn("up", "--detach") for _ in range(2)]
    try:
        wait_for(lambda: any(process.poll() is not None for process in both), what="one to say so")
        (first,) = [process for process in both if process.poll() is not None]
        assert (first.returncode, "A stack is running over" in first.communicate()[0]) == (0, True)
    finally:
        stack.command("down")
        for process in both:
            process.communicate(timeout=60)


def test_logs_knows_its_parts(detached: RunningStack) -> None:
    result = detached.command("logs", "nobody")
    assert (result.returncode, result.stdout) == (1, "")
    assert "There is no part 'nobody'. Parts: up, postgres" in result.stderr


def test_logs_can_be_followed(detached: RunningStack) -> None:
    with detached.spawn("logs", "dispatcher", "-f", "-n", "1000") as following:
        wait_for(lambda: psutil.Process(following.pid).name() == "tail", what="the reader")
        job = detached.run(params={"prompt": "followed"})
        assert following.stdout is not None
        line = next(line for line in following.stdout if job["id"] in line)
        following.send_signal(signal.SIGINT)
    assert json.loads(line)["message"] == "claimed"


def test_down_ends_all_of_it_and_says_so_once_more(tmp_path: Path) -> None:
    stack = RunningStack(data_dir=tmp_path)
    assert stack.command("status").returncode == 3
    stack.start()
    wait_for(lambda: "Schema" in stack.said(), what="the servers")
    family = stack.family()
    assert stack.command("status").returncode == 2, "not ready yet"
    result = stack.command("down")
    assert (result.returncode, stack.wait_for_end()) == (0, 0)
    assert "Stopped after" in result.stdout
    assert not [process for process in family if process.is_running()]
    again = stack.command("down")
    assert (again.returncode, again.stdout.strip()) == (0, f"Nothing is running over {tmp_path}.")
    assert json.loads(stack.command("status", "--json").stdout)["running"] is False
    with pytest.raises(httpx2.ConnectError):
        stack.get("/healthz")
