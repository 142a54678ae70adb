"""The client commands as a person and a script use them, over the whole service."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dreamforge.cli.image_files import ImageFiles
from dreamforge.client import Client
from dreamforge.embedded.ports import free_port
from tests.running_stack import RunningStack, wait_for
from tests.terminal import CTRL_C, Terminal
from tests.web import web

pytestmark = pytest.mark.timeout(400)

LONG = ("-n", "40", "--steps", "50", "--seed", "0")
CANCEL_SECONDS = 15.0
"""Generous: the machine may be busy. The latency in the event is by the database's clock."""


def _environment(url: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DREAMFORGE_", "RAY_"))}
    return {**inherited, "DREAMFORGE_URL": url}


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "dreamforge.cli.main", *map(str, arguments)]


def _run(url: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*arguments), env=_environment(url), capture_output=True, text=True, timeout=200, check=False
    )


def _done(stack: RunningStack, *arguments: str | Path) -> str:
    """What a command that must succeed printed."""
    result = _run(stack.base_url, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def _newest(stack: RunningStack) -> dict[str, Any]:
    (job,) = stack.get("/v1/jobs?limit=1").json()["items"]
    return job


def _by_seed(stack: RunningStack, job: dict[str, Any]) -> dict[int, dict[str, Any]]:
    items = stack.get(f"{job['links']['artifacts']}?limit=200").json()["items"]
    return {artifact["seed"]: artifact for artifact in items}


def _sha256(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def _assert_next_job_runs(stack: RunningStack) -> None:
    assert stack.run(params={"prompt": "the next one"})["status"] == "succeeded"


def test_a_prompt_becomes_files_that_check_out(stack: RunningStack, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    result = _run(
        stack.base_url, "generate", "A Lighthouse, at dawn!", "-n", "3", "-o", folder, "--seed", "41", "--steps", "3",
        "--negative", "fog", "--width", "96", "--height", "64", "--guidance", "5", "--scheduler", "ddim",
        "--param", "preset=balanced", "--priority", "high",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    paths = [Path(line) for line in result.stdout.splitlines()]
    job = _newest(stack)
    short = job["id"].replace("-", "")[-8:]
    assert [path.name for path in paths] == [f"a-lighthouse-at-dawn-{seed}-{short}.png" for seed in (41, 42, 43)]
    assert sorted(folder.iterdir()) == paths
    artifacts = _by_seed(stack, job)
    assert [_sha256(path) for path in paths] == [artifacts[seed]["checksum"] for seed in (41, 42, 43)]
    assert job["priority"] == "high"
    wanted = {"negative_prompt": "fog", "width": 96, "steps": 3, "guidance_scale": 5.0, "scheduler": "ddim"}
    assert wanted.items() <= job["params"].items()
    assert "succeeded, 3 of 3 images" in result.stderr
    assert "\x1b" not in result.stderr + result.stdout, "where there is no terminal there are plain lines"


def test_for_programs_there_is_one_object_and_nothing_else(stack: RunningStack, tmp_path: Path) -> None:
    answer = json.loads(_done(stack, "generate", "a fox", "-n", "2", "-o", tmp_path, "--seed", "5", "--json"))
    assert set(answer) == {"job", "files"}
    assert answer["job"]["status"] == "succeeded"
    assert [file["seed"] for file in answer["files"]] == [5, 6]
    assert [_sha256(Path(file["path"])) for file in answer["files"]] == [file["checksum"] for file in answer["files"]]
    listed = json.loads(_done(stack, "jobs", "list", "--limit", "1", "--json"))["items"]
    assert [job["id"] for job in listed] == [answer["job"]["id"]]
    shown = json.loads(_done(stack, "jobs", "show", answer["job"]["id"], "--json"))
    assert (shown["job"]["status"], len(shown["artifacts"])) == ("succeeded", 2)
    assert json.loads(_done(stack, "model", "list", "--json"))["items"][0]["name"] == "sdxl-tiny"


def test_what_is_there_is_never_overwritten(stack: RunningStack, tmp_path: Path) -> None:
    job_id = stack.run(count=2, params={"prompt": "a fox", "seed": 1})["id"]
    with Client(stack.base_url) as client:
        job = client.get(job_id)
        first, second = (
            [Path(file.path) for file in ImageFiles(client=client, folder=tmp_path).save_finished(job)]
            for _ in range(2)
        )
    assert [path.name for path in second] == [f"{path.stem}-2.png" for path in first]
    assert [path.read_bytes() for path in second] == [path.read_bytes() for path in first]


def test_a_job_may_be_left_to_itself_and_its_log_followed_to_the_end(stack: RunningStack) -> None:
    job_id = _done(stack, "generate", "a fox", "-n", "2", "--no-wait").strip()
    lines = [json.loads(line) for line in _done(stack, "jobs", "logs", job_id, "-f", "--json").splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert lines[-1]["code"] == "job.succeeded"
    assert lines == stack.events(stack.get(f"/v1/jobs/{job_id}").json())
    rendered = _done(stack, "jobs", "logs", job_id).splitlines()
    assert len(rendered) == len(lines)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}  job\.queued +reason submitted", rendered[0])
    shown = _done(stack, "jobs", "show", job_id)
    for words in (job_id, "succeeded, 2 of 2 images", "a fox", "sdxl-tiny@1"):
        assert words in shown


def test_a_running_job_of_forty_is_cancelled_within_seconds_and_what_was_finished_stays(stack: RunningStack) -> None:
    job_id = _done(stack, "generate", "a long one", *LONG, "--no-wait").strip()
    path = f"/v1/jobs/{job_id}"
    wait_for(lambda: stack.get(path).json()["progress"]["items_done"] >= 2, seconds=120, what="two images")
    # Handed to Ray beside the running one, it waits for the GPU and has no supervisor yet.
    waiting_id = _done(stack, "generate", "behind it", "--no-wait").strip()
    wait_for(lambda: stack.get(f"/v1/jobs/{waiting_id}").json()["status"] == "running", what="the second claim")
    _done(stack, "jobs", "cancel", waiting_id)
    wait_for(lambda: stack.get(f"/v1/jobs/{waiting_id}").json()["status"] == "cancelled", seconds=CANCEL_SECONDS)

    said = _done(stack, "jobs", "cancel", job_id)
    assert said == f"Cancelling: it stops within seconds. See: dreamforge jobs show {job_id}\n"
    job = stack.wait_for_job(job_id, seconds=CANCEL_SECONDS)
    done = job["progress"]["items_done"]
    assert (job["status"], job["error"], job["steps"][0]["status"]) == ("cancelled", None, "cancelled")
    assert 2 <= done < 40
    kept = _by_seed(stack, job)
    assert sorted(kept) == list(range(done))
    assert all(web.get(artifact["url"]).status_code == 200 for artifact in kept.values())
    events = stack.events(job)
    assert [event["code"] for event in events[-2:]] == ["step.cancelled", "job.cancelled"]
    assert [event["code"] for event in events].count("job.cancel_requested") == 1
    assert events[-1]["payload"]["items_done"] == done
    assert 0 < events[-1]["payload"]["cancel_latency_ms"] < CANCEL_SECONDS * 1000
    assert _done(stack, "jobs", "cancel", job_id) == "The job was over already: cancelled.\n"
    _assert_next_job_runs(stack)


def test_ctrl_c_asks_and_cancels(stack: RunningStack, tmp_path: Path) -> None:
    command = _command("generate", "interrupted", *LONG, "-o", tmp_path)
    with Terminal(command, environment=_environment(stack.base_url)) as terminal:
        terminal.wait_for("of 40 images")
        terminal.wait_for("denoise")
        # Before the job has ended: images are saved as they are finished.
        wait_for(lambda: list(tmp_path.glob("*.png")), what="the first file")
        terminal.type(CTRL_C)
        terminal.wait_for("Cancel the job?")
        terminal.type("y\n")
        assert terminal.wait_for_end() == 130
        assert "The job is cancelled; " in terminal.screen()
        assert "Traceback" not in terminal.screen()
    job = _newest(stack)
    assert job["status"] == "cancelled"
    saved = {_sha256(path) for path in tmp_path.iterdir()}
    assert saved == {artifact["checksum"] for artifact in _by_seed(stack, job).values()}
    _assert_next_job_runs(stack)


@pytest.mark.parametrize("answer", ["n\n", CTRL_C], ids=["no", "ctrl-c"])
def test_the_job_goes_on_when_the_answer_is_not_yes(stack: RunningStack, tmp_path: Path, answer: str) -> None:
    command = _command("generate", "left alone", *LONG, "-o", tmp_path)
    with Terminal(command, environment=_environment(stack.base_url)) as terminal:
        terminal.wait_for("of 40 images")
        terminal.type(CTRL_C)
        terminal.wait_for("Cancel the job?")
        terminal.type(answer)
        assert terminal.wait_for_end() == 130
        job = _newest(stack)
        assert f"dreamforge jobs show {job['id']}" in terminal.screen()
        assert "Traceback" not in terminal.screen()
    assert job["status"] in {"queued", "running"}
    _done(stack, "jobs", "cancel", job["id"])
    stack.wait_for_job(job["id"], seconds=CANCEL_SECONDS)


def test_without_a_terminal_an_interrupt_leaves_the_job_running_and_says_so(
    stack: RunningStack, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        _command("generate", "interrupted", *LONG, "-o", tmp_path, "--json"),
        env=_environment(stack.base_url),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: list(tmp_path.glob("*.png")), seconds=120, what="the first file")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    answer = json.loads(out)
    job_id = answer["job"]["id"]
    assert answer["job"]["status"] == "running"
    assert {file["path"] for file in answer["files"]} <= {str(path) for path in tmp_path.glob("*.png")}
    assert f"dreamforge jobs cancel {job_id}" in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("*.part"))
    _done(stack, "jobs", "cancel", job_id)
    stack.wait_for_job(job_id, seconds=CANCEL_SECONDS)


def test_jobs_are_listed_newest_first_and_in_pages(stack: RunningStack) -> None:
    before = datetime.fromisoformat(_newest(stack)["created_at"])
    ids = [stack.post(params={"prompt": f"listed {number}"}).json()["id"] for number in range(5)]
    for job_id in ids:
        assert web.post(f"{stack.base_url}/v1/jobs/{job_id}/cancel").status_code == 202
    with Client(stack.base_url) as client:
        paged = [str(job.id) for job in client.list(created_after=before, page_size=2)]
    assert paged == ids[::-1]
    heading, *lines = _done(stack, "jobs", "list", "--limit", "3").splitlines()
    assert heading.split() == ["id", "status", "images", "created", "prompt"]
    assert [line.split()[0] for line in lines[:3]] == ids[:1:-1]
    assert "listed 4" in lines[0]
    assert lines[3].startswith("There are more")
    for job_id in ids:
        stack.wait_for_job(job_id, seconds=60)
    assert "cancelled" not in _done(stack, "jobs", "list", "--status", "succeeded")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate", "a fox", "--model", "sdxl-base"), "unknown_model: No model 'sdxl-base'. Installed: sdxl-tiny."),
        (("generate", "a fox", "--width", "7"), "params.width must be"),
        (("generate", "a fox", "--param", "colour=red"), "invalid_request: "),
        (("generate", "a fox", "-o", "/proc/nowhere"), "Nothing can be saved in /proc/nowhere"),
        (("jobs", "show", "17"), "not_found: There is no such job."),
        (("jobs", "logs", "17", "-f"), "not_found: There is no such job."),
        (("jobs", "cancel", "../../readyz"), "not_found: There is nothing at this address."),
    ],
)
def test_a_mistake_is_told_in_one_sentence(stack: RunningStack, arguments: tuple[str, ...], words: str) -> None:
    before = _newest(stack)["id"]
    result = _run(stack.base_url, *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert _newest(stack)["id"] == before, "no job was begun"


@pytest.mark.parametrize(
    "arguments", [("generate", "a fox", "--no-wait"), ("jobs", "list"), ("model", "list"), ("jobs", "cancel", "17")]
)
def test_a_service_that_is_down_is_said_to_be_with_what_to_do(arguments: tuple[str, ...]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    began = time.monotonic()
    result = _run(url, *arguments)
    assert time.monotonic() - began < 60
    assert (result.returncode, result.stdout) == (1, "")
    assert f"No Dream Forge answers at {url}" in result.stderr
    assert "dreamforge up" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_option_goes_before_the_variable(stack: RunningStack) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert _run(nowhere, "model", "list", "--url", stack.base_url).returncode == 0
    result = _run(stack.base_url, "model", "list", "--url", nowhere)
    assert (result.returncode, nowhere in result.stderr) == (1, True)


def test_another_program_s_address_is_not_taken_for_the_service(stack: RunningStack) -> None:
    result = _run(stack.base_url, "jobs", "list", "--url", f"http://127.0.0.1:{stack.ports['S3_PORT']}")
    assert result.returncode == 1
    assert "not Dream Forge's" in result.stderr
