"""From `POST /v1/jobs` to the image, over the whole service as `dreamforge up` starts it."""

import hashlib
import io
import json
import re
import subprocess
from typing import Any

import psutil
import pytest
from PIL import Image

from dreamforge.images.reading import read_image
from tests.running_stack import RunningStack, wait_for
from tests.web import web

pytestmark = pytest.mark.timeout(300)


def _download(artifact: dict[str, Any]) -> bytes:
    data = web.get(artifact["url"], timeout=10).raise_for_status().content
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == artifact["checksum"]
    assert len(data) == artifact["size_bytes"]
    return data


def _pixels(stack: RunningStack, job: dict[str, Any]) -> list[bytes]:
    return [Image.open(io.BytesIO(_download(artifact))).tobytes() for artifact in stack.artifacts(job)]


def _typed(command: str) -> bytes:
    return subprocess.run(["bash", "-c", command], check=True, capture_output=True).stdout


def test_a_job_becomes_images_that_say_how_they_were_made(stack: RunningStack) -> None:
    params = {"prompt": "a lighthouse, at dawn", "negative_prompt": "fog", "width": 96, "height": 64, "seed": 41}
    params |= {"steps": 3, "scheduler": "dpmpp_2m_karras", "guidance_scale": 5.0}
    job = stack.run(count=3, params=params, metadata={"mine": "yes"})
    assert (job["status"], job["error"]) == ("succeeded", None)
    assert job["progress"]["fraction"] == 1.0
    assert (job["progress"]["items_done"], job["progress"]["items_total"]) == (3, 3)
    assert [(step["name"], step["status"], step["attempt"]) for step in job["steps"]] == [("generate", "succeeded", 1)]
    assert job["metadata"] == {"mine": "yes"}
    artifacts = stack.artifacts(job)
    assert [artifact["seed"] for artifact in artifacts] == [41, 42, 43]
    (model,) = stack.get("/v1/models").json()["items"]
    for index, artifact in enumerate(artifacts):
        data = _download(artifact)
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (96, 64))
        assert len(image.getcolors(96 * 64) or ()) > 100, "noise has many colours"
        written = read_image(data)
        assert written.manifest is not None
        assert (written.manifest.job_id, written.manifest.item_index) == (job["id"], index)
        assert written.manifest.params == job["params"]
        assert written.manifest.model is not None
        assert written.manifest.model.sha256 == model["checkpoint_hash"]
        assert written.parameters == (
            "a lighthouse, at dawn\nNegative prompt: fog\n"
            f"Steps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5.0, Seed: {41 + index}, Size: 96x64, "
            f"Model hash: {model['checkpoint_hash'][:10]}, Model: sdxl-tiny, "
            f'Hashes: {{"model":"{model["checkpoint_hash"][:10]}"}}, Version: dreamforge 0.1.0'
        )


def test_the_printed_commands_work_as_typed(stack: RunningStack) -> None:
    said = stack.said()
    (post,) = re.findall(r"^  (curl [^\n]*/v1/jobs -H.*?\\\n[^\n]*)$", said, re.MULTILINE)
    job = json.loads(_typed(post))
    stack.wait_for_job(job["id"])
    follow_ups = re.findall(r"^  (curl -s \S+/v1/jobs/JOB_ID\S*)", said, re.MULTILINE)
    assert len(follow_ups) == 2
    answers = [json.loads(_typed(line.replace("JOB_ID", job["id"]))) for line in follow_ups]
    assert answers[0]["status"] == "succeeded"
    assert [artifact["seed"] for artifact in answers[1]["items"]] == [7, 8]


def test_the_first_image_is_where_it_says(stack: RunningStack) -> None:
    with Image.open(stack.data_dir / "self-check.png") as image:
        assert (image.format, image.size) == ("PNG", (64, 64))
    assert "self-check.png" in stack.said()


def test_the_same_seed_gives_the_same_pixels_twice(stack: RunningStack) -> None:
    params = {"prompt": "a fox", "seed": 5}
    once, again = (stack.run(count=2, params=params) for _ in range(2))
    other = stack.run(params={"prompt": "a fox", "seed": 7})
    assert _pixels(stack, once) == _pixels(stack, again)
    assert _pixels(stack, other)[0] not in _pixels(stack, once)


def test_the_events_tell_the_whole_way(stack: RunningStack) -> None:
    job = stack.run(params={"prompt": "a fox"})
    events = stack.events(job)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    codes = [event["code"] for event in events]
    for code in ("job.queued", "job.started", "step.started", "model.loaded", "item.started", "artifact.created"):
        assert codes.count(code) == 1, code
    assert codes[-2:] == ["step.succeeded", "job.succeeded"]
    memory = [event["payload"] for event in events if event["code"] == "gpu.memory"]
    assert [reading["phase"] for reading in memory] == ["before", "peak", "after"]
    if not memory[0]["available"]:
        assert memory[0]["message"].startswith("no GPU: ")
    path = f"{job['links']['logs']}?code=item.started&item_index=0"
    (line,) = stack.get(path).text.splitlines()
    assert json.loads(line)["payload"]["seed"] == stack.artifacts(job)[0]["seed"]


def test_only_the_runner_holds_torch(stack: RunningStack) -> None:
    job = stack.post(count=40, params={"prompt": "a fox", "steps": 20}).json()
    wait_for(lambda: stack.artifacts(job), seconds=60, what="the first image")
    holders: list[list[str]] = []
    names: list[str] = []
    for process in stack.family():
        try:
            maps = {mapped.path for mapped in process.memory_maps()}
            command = process.cmdline()
        except psutil.NoSuchProcess:
            continue
        names += command[:1]
        if any("libtorch" in path for path in maps):
            holders.append(command)
    web.post(f"{stack.base_url}{job['links']['cancel']}")
    stack.wait_for_job(job["id"])
    assert holders, "a runner was at work"
    assert all("dreamforge.runners.process" in command for command in holders), holders
    assert len([name for name in names if name.startswith("ray::ServeReplica:api")]) == 2
    assert len([name for name in names if name.startswith("ray::ServeReplica:dispatcher")]) == 1
    assert [name for name in names if name.startswith("ray::generate")], "the supervisor was seen"


def test_the_dashboard_shows_a_readable_task_and_asks_for_the_token(stack: RunningStack) -> None:
    job = stack.run(params={"prompt": "a fox"})
    url = f"{stack.state()['dashboard']}/api/v0/tasks?limit=1000&detail=true"
    assert web.get(url).status_code in {401, 403}
    token = (stack.data_dir / "secrets" / "ray_token").read_text().strip()

    def tasks() -> list[dict[str, Any]]:
        answer = web.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=20).raise_for_status()
        return answer.json()["data"]["result"]["result"]

    wait_for(
        lambda: [task for task in tasks() if task["name"] == f"generate {job['id']} (attempt 1)"],
        what="the task's name",
    )
    shown = json.dumps(tasks())
    secrets = [path.read_text().strip() for path in (stack.data_dir / "secrets").iterdir()]
    assert len(secrets) == 4
    assert not [secret for secret in secrets if secret in shown]


def test_an_unknown_model_is_refused_by_name(stack: RunningStack) -> None:
    response = stack.post(model_id="sdxl-base", params={"prompt": "a fox"})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (422, "unknown_model")
    assert error["message"] == "No model 'sdxl-base'. Installed: sdxl-tiny."
    assert error["request_id"] == response.headers["X-Request-Id"]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"params": {"prompt": "a fox", "width": 7}}, "params.width"),
        ({"params": {}}, "params"),
        ({"count": 101, "params": {"prompt": "a fox"}}, "count"),
        ({"params": {"prompt": "a fox"}, "surprise": 1}, "surprise"),
    ],
)
def test_bad_parameters_are_refused_by_path(stack: RunningStack, body: dict[str, Any], path: str) -> None:
    response = stack.post(**body)
    assert response.status_code == 422
    assert path in [part["path"] for part in response.json()["error"]["details"]["errors"]]


def test_images_are_private(stack: RunningStack) -> None:
    job = stack.run(params={"prompt": "a fox"})
    url = stack.artifacts(job)[0]["url"]
    bare = url.partition("?")[0]
    assert web.get(url).status_code == 200
    assert web.get(bare).status_code in {400, 401, 403}
    signed, _, signature = url.partition("X-Amz-Signature=")
    forged = f"{signed}X-Amz-Signature={'1' if signature.startswith('0') else '0'}{signature[1:]}"
    assert web.get(forged).status_code in {400, 403}
    assert web.get(bare.rsplit("/", 6)[0]).status_code in {400, 401, 403}, "the bucket lists nothing either"


def test_artifacts_come_in_pages(stack: RunningStack) -> None:
    job = stack.run(count=5, params={"prompt": "a fox", "seed": 0})
    seeds: list[int] = []
    pages = 0
    query = "?limit=2"
    while query:
        page = stack.get(f"{job['links']['artifacts']}{query}").json()
        pages += 1
        seeds += [artifact["seed"] for artifact in page["items"]]
        query = f"?limit=2&cursor={page['next_cursor']}" if page["next_cursor"] else ""
    assert (pages, seeds) == (3, [0, 1, 2, 3, 4])


def test_jobs_posted_together_all_end(stack: RunningStack) -> None:
    jobs = [stack.post(params={"prompt": f"fox {number}"}).json() for number in range(3)]
    assert {stack.wait_for_job(job["id"])["status"] for job in jobs} == {"succeeded"}


def test_everything_is_ready_and_only_loopback_hears_us(stack: RunningStack) -> None:
    readiness = stack.get("/readyz").json()
    assert readiness["status"] == "ok"
    assert all(check["ok"] for check in readiness["checks"].values())
    ports = set(stack.ports.values())
    heard = {(ip, port) for ip, port in stack.listens() if port in ports}
    assert {port for _, port in heard} == ports
    assert {ip.removeprefix("::ffff:") for ip, _ in heard} == {"127.0.0.1"}
