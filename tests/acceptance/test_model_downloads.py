"""Models that the deployed service downloads in the background, from a hub that is asked with a token."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests import weights
from tests.hubs.civitai import FakeCivitai, HubFile, HubVersion
from tests.hubs.hosting import Fault, HostedFile
from tests.running_stack import RunningStack, command_of, wait_for

pytestmark = pytest.mark.timeout(400)

TOKEN = "civitai-token-that-nobody-shall-see"
SLOWLY = Fault(drip=0.05, drip_bytes=16 * 1024)
CANCEL_SECONDS = 5.0
"""A cancel takes less than one on a machine with nothing else to do."""


class Hub(FakeCivitai):
    """A hub whose models are for those with the token."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.tokens.add(TOKEN)
        self._folder = folder

    def model(self, number: int) -> tuple[str, HostedFile]:
        """A LoRA of two megabytes: its reference, and its file."""
        shapes = weights.kohya_lora(rank=512)
        file = weights.write(self._folder / f"lora-{number}.safetensors", shapes, fill=b"lora %d" % number)
        version = self.add(
            HubVersion(
                number * 10,
                number,
                [HubFile(file.name, file)],
                model_name=f"Lora {number}",
                type="LORA",
                needs_token=True,
            )
        )
        (hosted,) = version.stored.values()
        return f"civitai:{number}@{number * 10}", hosted


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Iterator[RunningStack]:
    """A stack that knows the hub, and whose processes may be killed."""
    stack = RunningStack(
        data_dir=tmp_path_factory.mktemp("downloads"),
        DREAMFORGE_CIVITAI_ENDPOINT=hub.endpoint,
        DREAMFORGE_CIVITAI_TOKEN=TOKEN,
        HF_TOKEN="another-token-that-nobody-shall-see",
        DREAMFORGE_DOWNLOAD_CONNECTIONS="1",
        DREAMFORGE_LEASE_SECONDS="6",
        DREAMFORGE_LEASE_RENEW_SECONDS="1",
        DREAMFORGE_RETRY_PAUSE="0.2",
    )
    with stack.ready():
        yield stack


def _ask(stack: RunningStack, source: str, **body: Any) -> httpx2.Response:
    return stack.ask("POST", "/v1/admin/models", json={"source": source, **body})


def _begun(stack: RunningStack, source: str, *, share: float = 0.0, **body: Any) -> dict[str, Any]:
    """A download of which so much is there."""
    job = _ask(stack, source, **body).json()

    def is_begun() -> bool:
        told = [event["payload"] for event in stack.events(job) if event["code"] == "model.fetching"]
        return bool(told) and told[-1]["bytes_done"] > share * told[-1]["bytes_total"]

    wait_for(is_begun, what="news of its bytes", instead=lambda: stack.events(job))
    return job


def _process(stack: RunningStack, job: dict[str, Any]) -> psutil.Process:
    """The Ray worker that runs the job's step: Ray shows its task's name as its title."""
    (process,) = [one for one in stack.family() if f"ray::download {job['id']}" in command_of(one)]
    return process


def test_a_model_is_downloaded_with_the_service_s_token_and_can_be_used_at_once(stack: RunningStack, hub: Hub) -> None:
    source, _ = hub.model(1)
    answer = _ask(stack, source, name="first", version="1")
    assert (answer.status_code, answer.headers["Location"]) == (201, answer.json()["links"]["self"])
    job = stack.wait_for_job(answer.json()["id"])
    assert (job["status"], job["model_id"], job["error"]) == ("succeeded", None, None), job
    (installed,) = [event["payload"] for event in stack.events(job) if event["code"] == "model.installed"]
    model = stack.get("/v1/models/first").json()
    assert (model["id"], model["kind"], model["enabled"]) == (installed["model_id"], "lora", True)
    assert stack.artifacts(job) == []
    drawn = stack.run(params={"prompt": "a fox", "steps": 1})
    assert drawn["status"] == "succeeded", drawn


def test_no_token_is_told_or_given_to_a_runner(stack: RunningStack, hub: Hub) -> None:
    source, file = hub.model(2)
    file.fault = SLOWLY
    downloading = _begun(stack, source, name="second")
    drawing = stack.post(count=20, params={"prompt": "a long one", "steps": 50}).json()

    def runner() -> psutil.Process | None:
        return next((one for one in stack.family() if "dreamforge.runners.process" in command_of(one)), None)

    environment = wait_for(runner, what="a runner").environ()
    stack.ask("POST", drawing["links"]["cancel"])
    file.fault = Fault()
    stack.wait_for_job(downloading["id"])
    assert not [name for name, value in environment.items() if "TOKEN" in name or "nobody-shall-see" in value]
    told = json.dumps([stack.events(downloading), stack.get(downloading["links"]["self"]).json()])
    assert "nobody-shall-see" not in told
    logs = [*stack.data_dir.rglob("*.log"), *stack.ray_folder.rglob("*.log"), *stack.ray_folder.rglob("*.out")]
    assert logs
    assert [path for path in logs if b"nobody-shall-see" in path.read_bytes()] == []
    kept = [path for path in (stack.data_dir / "models").rglob("*.json") if b"nobody-shall-see" in path.read_bytes()]
    assert kept == []


def test_one_whose_process_is_killed_goes_on_from_there(stack: RunningStack, hub: Hub) -> None:
    source, file = hub.model(3)
    file.fault = SLOWLY
    job = _begun(stack, source, share=0.4)
    _process(stack, job).send_signal(signal.SIGKILL)
    file.fault = Fault()
    ended = stack.wait_for_job(job["id"])
    assert (ended["status"], ended["steps"][0]["attempt"]) == ("succeeded", 2), ended
    last = next(asked for asked in reversed(file.requests) if asked.sent > 1)
    begin = re.fullmatch(r"bytes=(\d+)-\d*", last.headers.get("Range", ""))
    assert begin, last.headers
    assert int(begin[1]) > 0, "what was there is not fetched again"
    assert last.sent < file.size


def test_a_cancel_takes_moments_and_a_retry_finishes_it(stack: RunningStack, hub: Hub) -> None:
    source, file = hub.model(4)
    file.fault = SLOWLY
    job = _begun(stack, source)
    stack.ask("POST", job["links"]["cancel"])
    ended = stack.wait_for_job(job["id"])
    assert ended["status"] == "cancelled"
    (cancelled,) = [event["payload"] for event in stack.events(job) if event["code"] == "job.cancelled"]
    assert cancelled["cancel_latency_ms"] < CANCEL_SECONDS * 1000
    file.fault = Fault()
    assert stack.ask("POST", f"{job['links']['self']}/retry").status_code == 202
    assert stack.wait_for_job(job["id"])["status"] == "succeeded"


def test_a_reference_to_nothing_fails_with_what_to_do(stack: RunningStack) -> None:
    job = stack.wait_for_job(_ask(stack, "civitai:99@990").json()["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "source_not_found")
