"""What `/v1` promises, row by row, over HTTP to the deployed service; what has a story of its own has its own file."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import text

from dreamforge.store.engine import open_engine
from tests.integration.factories import a_model
from tests.running_stack import RunningStack
from tests.web import web

pytestmark = pytest.mark.timeout(300)

_PARAMS = {"prompt", "negative_prompt", "width", "height", "steps", "guidance_scale", "scheduler", "seed", "format"}
_PROGRESS = {"fraction", "items_done", "items_total", "stage", "queue_position", "eta_seconds"}
_LINKS = {"self", "artifacts", "logs", "progress", "stream", "cancel"}
_STEP = {"id", "name", "status", "attempt", "started_at", "finished_at", "error"}
_JOB = {
    "id", "type", "status", "model_id", "count", "priority", "params", "options", "metadata", "created_at",
    "updated_at", "started_at", "finished_at", "expires_at", "progress", "steps", "error", "links",
}  # fmt: skip
_ARTIFACT = {
    "id", "job_id", "step_id", "item_index", "format", "width", "height", "seed", "size_bytes", "checksum",
    "created_at", "expires_at", "url", "url_expires_at", "metadata",
}  # fmt: skip
_MODEL = {
    "id", "name", "kind", "version", "installed", "enabled", "default", "checkpoint_hash", "source_uri",
    "capabilities", "parameters_schema", "size_bytes", "nodes", "created_at", "updated_at", "metadata",
}  # fmt: skip
_LINE = {"seq", "ts", "code", "job_id", "step_id", "attempt", "level", "payload"}


@pytest.fixture(scope="module")
def job(stack: RunningStack) -> dict[str, Any]:
    """A job of two images that has succeeded."""
    return stack.run(count=2, params={"prompt": "a contract", "seed": 5}, metadata={"mine": "ß 🦊"}, priority="high")


@pytest.fixture
def unusable(stack: RunningStack) -> Iterator[dict[str, str]]:
    """The error code of each of three models that the service knows and cannot use, by name."""
    engine = open_engine(stack.database_url, application="tests", pool_size=1)
    models = {
        "model_not_installed": a_model(engine, kind="absent"),
        "model_disabled": a_model(engine, kind="off"),
        "model_incompatible": a_model(engine, kind="other", capabilities=("upscale",)),
    }
    with engine.begin() as connection:
        for change, code in (("installed", "model_not_installed"), ("enabled", "model_disabled")):
            connection.execute(text(f"UPDATE models SET {change} = false WHERE id = :id"), {"id": models[code].id})  # noqa: S608 - ours
    try:
        yield {model.name: code for code, model in models.items()}
    finally:
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM models WHERE source_uri = 'builtin:test'"))
        engine.dispose()


def _get(stack: RunningStack, path: str) -> Any:
    response = stack.get(path)
    assert response.status_code == 200, response.text
    return response.json()


def _ids(stack: RunningStack, query: str) -> list[str]:
    return [listed["id"] for listed in _get(stack, f"/v1/jobs?{query}")["items"]]


def test_a_job_has_every_field_and_is_the_same_on_every_route(stack: RunningStack, job: dict[str, Any]) -> None:
    assert set(job) == _JOB
    assert set(job["params"]) >= _PARAMS
    assert set(job["progress"]) == _PROGRESS
    assert set(job["links"]) == _LINKS
    assert [set(step) for step in job["steps"]] == [_STEP]
    assert (job["type"], job["status"], job["count"], job["priority"]) == ("generate", "succeeded", 2, "high")
    assert (job["metadata"], job["params"]["seed"], job["error"]) == ({"mine": "ß 🦊"}, 5, None)
    times = [datetime.fromisoformat(job[f"{word}_at"]) for word in ("created", "started", "finished")]
    assert times == sorted(times)
    assert all(job[f"{word}_at"].endswith("Z") for word in ("created", "updated", "started", "finished"))
    assert _get(stack, f"/v1/jobs?created_after={_before(job)}&limit=200")["items"].count(job) == 1


def _before(job: dict[str, Any]) -> str:
    return job["created_at"].replace(job["created_at"][11:], "00:00:00Z")


def test_a_created_job_says_where_it_is(stack: RunningStack) -> None:
    response = stack.post(params={"prompt": "located"})
    assert response.status_code == 201
    assert response.headers["Location"] == f"/v1/jobs/{response.json()['id']}"
    assert _get(stack, response.headers["Location"])["id"] == response.json()["id"]
    stack.wait_for_job(response.json()["id"])


def test_jobs_are_found_by_each_filter(stack: RunningStack, job: dict[str, Any]) -> None:
    other = stack.post(count=40, params={"prompt": "to be cancelled", "steps": 50}).json()
    cancel = f"{stack.base_url}{other['links']['cancel']}"
    assert web.post(cancel).status_code == 202
    stack.wait_for_job(other["id"])
    assert web.post(cancel).status_code == 200, "it was over already"
    both = {job["id"], other["id"]}
    assert both <= set(_ids(stack, "status=succeeded&status=cancelled&limit=200"))
    assert both & set(_ids(stack, "status=cancelled&limit=200")) == {other["id"]}
    assert both & set(_ids(stack, "status=failed&limit=200")) == set()
    assert both <= set(_ids(stack, f"type=generate&model_id={job['model_id']}&limit=200"))
    assert both <= set(_ids(stack, "model_id=sdxl-tiny&limit=200"))
    assert both & set(_ids(stack, f"created_after={job['created_at']}&limit=200")) == {other["id"]}
    assert both & set(_ids(stack, f"created_before={other['created_at']}&limit=200")) == {job["id"]}


def test_pages_skip_and_repeat_nothing_while_jobs_are_added(stack: RunningStack) -> None:
    before = _ids(stack, "limit=200")
    seen, cursor, added = list[str](), "", list[str]()
    while cursor is not None:
        page = _get(stack, f"/v1/jobs?limit=2{cursor and f'&cursor={cursor}'}")
        seen += [listed["id"] for listed in page["items"]]
        cursor = page["next_cursor"]
        if len(added) < 3:
            added.append(stack.post(params={"prompt": "added"}).json()["id"])
    assert seen == before
    assert len(added) >= 2
    assert _ids(stack, f"limit={len(added)}") == added[::-1]
    for job_id in added:
        web.post(f"{stack.base_url}/v1/jobs/{job_id}/cancel")
        stack.wait_for_job(job_id)


def test_the_log_is_ndjson_and_has_each_filter(stack: RunningStack, job: dict[str, Any]) -> None:
    url = job["links"]["logs"]
    response = stack.get(url)
    assert response.headers["Content-Type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert all(set(line) == _LINE for line in lines)
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    for query, fits in (
        ("after=3", lambda line: line["seq"] > 3),
        ("code=artifact.created", lambda line: line["code"] == "artifact.created"),
        ("item_index=1", lambda line: line["payload"].get("item_index") == 1),
    ):
        told = [json.loads(line) for line in stack.get(f"{url}?{query}").text.splitlines()]
        assert told == [line for line in lines if fits(line)], query
        assert 0 < len(told) < len(lines), query
    assert len([line for line in lines if line["code"] == "artifact.created"]) == 2


def test_the_log_has_exactly_the_levels_that_are_asked_for(stack: RunningStack) -> None:
    # A job that succeeds has nothing but `info` to tell.
    late = stack.run(params={"prompt": "too late"}, options={"step_timeout": 0.01})
    assert late["status"] == "failed"
    lines = stack.events(late)
    for levels in (["info"], ["error"], ["warning", "error"]):
        query = "&".join(f"level={level}" for level in levels)
        told = [json.loads(line) for line in stack.get(f"{late['links']['logs']}?{query}").text.splitlines()]
        assert told == [line for line in lines if line["level"] in levels], query
        assert 0 < len(told) < len(lines), query


def test_an_artifact_has_every_field_and_a_url_that_tells_what_it_is(stack: RunningStack, job: dict[str, Any]) -> None:
    for index, artifact in enumerate(stack.artifacts(job)):
        assert set(artifact) == _ARTIFACT
        assert (artifact["job_id"], artifact["item_index"], artifact["seed"]) == (job["id"], index, 5 + index)
        image = web.get(artifact["url"])
        assert image.headers["Content-Type"] == "image/png"
        assert image.headers["Content-Disposition"].endswith('.png"')
        alone = _get(stack, f"/v1/artifacts/{artifact['id']}")
        moving = ("url", "url_expires_at")
        assert {**alone, **dict.fromkeys(moving)} == {**artifact, **dict.fromkeys(moving)}


def test_models_are_found_by_each_filter(stack: RunningStack, unusable: dict[str, str]) -> None:
    for query, code in (
        ("kind=sdxl", None),
        ("installed=false", "model_not_installed"),
        ("enabled=false", "model_disabled"),
        ("capability=upscale", "model_incompatible"),
    ):
        # Other tests of the same service have models of their own.
        ours = {"sdxl-tiny", *unusable}
        found = [model for model in _get(stack, f"/v1/models?{query}")["items"] if model["name"] in ours]
        assert [unusable.get(model["name"]) for model in found] == [code], query
        assert [set(model) for model in found] == [_MODEL]
        by_name, by_id = (_get(stack, f"/v1/models/{found[0][word]}") for word in ("name", "id"))
        assert by_name == by_id == found[0]


def test_a_model_that_cannot_be_used_says_why(stack: RunningStack, unusable: dict[str, str]) -> None:
    for name, code in unusable.items():
        response = stack.post(model_id=name, params={"prompt": "x"})
        assert (response.status_code, response.json()["error"]["code"]) == (422, code)
        assert response.json()["error"]["details"]["model_id"] == name


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/v1/jobs", {"Idempotency-Key": "x" * 300}),
        ("POST", "/v1/jobs", {"Prefer": "wait=soon"}),
        ("GET", "/v1/jobs?cursor=bm90IG91cnM", {}),
        ("GET", "{stream}", {"Last-Event-ID": "banana"}),
        ("GET", "{artifacts}?cursor=made-up", {}),
        ("GET", "{logs}?after=999999&follow=true", {}),
    ],
)
def test_a_bad_header_or_cursor_is_a_bad_request(
    stack: RunningStack, job: dict[str, Any], method: str, path: str, headers: dict[str, str]
) -> None:
    body = {"type": "generate", "params": {"prompt": "x"}} if method == "POST" else None
    response = web.request(method, stack.base_url + path.format(**job["links"]), json=body, headers=headers, timeout=30)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request"), response.text


def test_a_job_s_progress_has_every_field(stack: RunningStack, job: dict[str, Any]) -> None:
    progress = _get(stack, job["links"]["progress"])
    shared = _PROGRESS - {"queue_position"}
    assert set(progress) == shared | {"job_id", "status", "last_seq", "items"}
    assert [set(item) for item in progress["items"]] == [
        {"item_index", "step", "status", "fraction", "stage", "seed", "artifact_id"}
    ] * 2


def test_health_and_readiness_are_told(stack: RunningStack) -> None:
    assert _get(stack, "/healthz") == {"status": "ok"}
    readiness = _get(stack, "/readyz")
    assert readiness["status"] == "ok"
    assert set(readiness["checks"]) == {"postgres", "redis", "s3", "dispatcher", "gpu_nodes"}
    assert all(set(check) == {"ok", "required", "ms", "message"} for check in readiness["checks"].values())
    assert [name for name, check in readiness["checks"].items() if check["required"]] == ["postgres"]


def test_the_api_is_described_as_it_is_meant_to_be(stack: RunningStack) -> None:
    told = _get(stack, "/openapi.json")
    assert set(told["paths"]) >= {
        "/v1/jobs", "/v1/jobs/{job_id}", "/v1/jobs/{job_id}/cancel", "/v1/jobs/{job_id}/retry",
        "/v1/jobs/{job_id}/artifacts", "/v1/jobs/{job_id}/logs", "/v1/jobs/{job_id}/progress",
        "/v1/jobs/{job_id}/progress/stream", "/v1/artifacts/{artifact_id}", "/v1/artifacts/{artifact_id}/content",
        "/v1/models", "/v1/models/{model_id}", "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
