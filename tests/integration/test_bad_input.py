"""What nobody should send is refused by path and reason; every text that is one comes back as it was sent."""

import contextlib
import json
import logging
import socket
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from dreamforge.api.cursor import encode_artifact_cursor
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.store.models import NewModel
from tests.integration.door import GOOD, JSON, api_state, assert_envelope, served
from tests.integration.factories import finish


def _params(**params: Any) -> dict[str, Any]:
    return {**GOOD, "params": {"prompt": "x", **params}}


def _metadata(count: int, value: str) -> dict[str, Any]:
    return {**GOOD, "metadata": {str(number): value for number in range(count)}}


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({**GOOD, "count": 0}, "count"),
        ({**GOOD, "count": 101}, "count"),
        ({**GOOD, "count": True}, "count"),
        ({**GOOD, "count": 1.0}, "count"),
        ({**GOOD, "count": "1"}, "count"),
        ({**GOOD, "count": 2**63}, "count"),
        ({**GOOD, "count": None}, "count"),
        ({**GOOD, "type": "paint"}, "type"),
        ({**GOOD, "priority": "urgent"}, "priority"),
        ({**GOOD, "colour": 1}, "colour"),
        ({**GOOD, "model_id": ""}, "model_id"),
        ({**GOOD, "model_id": 7}, "model_id"),
        ({**GOOD, "model_id": "a\x00b"}, "model_id"),
        ({"type": "generate"}, "params"),
        ({**GOOD, "params": None}, "params"),
        ({**GOOD, "params": []}, "params"),
        ({**GOOD, "params": {}}, "params"),
        (_params(colour="red"), "params"),
        (_params(width=7), "params.width"),
        (_params(width=65), "params.width"),
        (_params(width=64.0), "params.width"),
        (_params(width=True), "params.width"),
        (_params(width=2**63), "params.width"),
        (_params(height=10**400), "params.height"),
        (_params(seed=-1), "params.seed"),
        (_params(seed=2**32), "params.seed"),
        (_params(seed=7.0), "params.seed"),
        (_params(steps="4"), "params.steps"),
        (_params(guidance_scale=True), "params.guidance_scale"),
        (_params(guidance_scale=10**4000), "params.guidance_scale"),
        (_params(guidance_scale=1e308), "params.guidance_scale"),
        (_params(scheduler="best"), "params.scheduler"),
        (_params(scheduler=["euler"]), "params.scheduler"),
        (_params(format={"png": 1}), "params.format"),
        (_params(prompt="x" * 8193), "params.prompt"),
        (_params(prompt=None), "params.prompt"),
        (_params(prompt="nul \x00"), "params.prompt"),
        (_params(prompt="\ud800"), "params.prompt"),
        (_params(prompt="\udfff and more"), "params.prompt"),
        (_params(negative_prompt="\udc00\ud800"), "params.negative_prompt"),
        ({**GOOD, "metadata": {"a": 1}}, "metadata.a"),
        ({**GOOD, "metadata": {"a": {"b": "nul \x00"}}}, "metadata.a.b"),
        ({**GOOD, "metadata": {"a": ["fine", "nul \x00"]}}, "metadata.a.1"),
        ({**GOOD, "metadata": {"a": "\ud800"}}, "metadata.a"),
        ({**GOOD, "metadata": {"nul \x00": "a"}}, "metadata"),
        ({**GOOD, "metadata": {"a": "x" * 513}}, "metadata.a"),
        ({**GOOD, "metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({**GOOD, "options": {"step_timeout": -1}}, "options.step_timeout"),
        ({**GOOD, "options": {"step_timeout": 10**400}}, "options.step_timeout"),
        ({**GOOD, "options": {"oom_policy": "pray"}}, "options.oom_policy"),
        ({**GOOD, "options": {"preview_every": 1}}, "options.preview_every"),
    ],
)
def test_bad_values_are_refused_by_path(client: TestClient, body: dict[str, Any], path: str) -> None:
    response = client.post("/v1/jobs", content=json.dumps(body), headers=JSON)
    error = assert_envelope(response, 422, "invalid_request")
    assert path in [part["path"] for part in error["details"]["errors"]]


@pytest.mark.parametrize(
    ("content", "media_type", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_request"),
        (b'{"type": NaN}', "application/json", 400, "invalid_request"),
        (b'{"params": {"guidance_scale": Infinity}}', "application/json", 400, "invalid_request"),
        (b'{"params": {"guidance_scale": -Infinity}}', "application/json", 400, "invalid_request"),
        (b'{"type": 1, "type": 2}', "application/json", 400, "invalid_request"),
        (b'{"params": {"a": {"b": 1, "b": 1}}}', "application/json", 400, "invalid_request"),
        (b'{"a": "\xff"}', "application/json", 400, "invalid_request"),
        (b'{"a": "\xed\xa0\x80"}', "application/json", 400, "invalid_request"),
        (b'{"a": "\xc0\xaf"}', "application/json", 400, "invalid_request"),
        (b'\xef\xbb\xbf{"type": "generate"}', "application/json", 400, "invalid_request"),
        ('{"type": "generate"}'.encode("utf-16"), "application/json", 400, "invalid_request"),
        (b"[" * 900 + b"]" * 900, "application/json", 422, "invalid_request"),
        (b"[" * 100_000, "application/json", 400, "invalid_request"),
        (b"[" * 100_000 + b"]" * 100_000, "application/json", 400, "invalid_request"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "application/json", 400, "invalid_request"),
        (b'{"count": ' + b"9" * 5000 + b"}", "application/json", 400, "invalid_request"),
        (b'{"params": ' + b'{"a":' * 30 + b"1" + b"}" * 31, "application/json", 422, "invalid_request"),
        (b'{"params": {"guidance_scale": 1e999}}', "application/json", 422, "invalid_request"),
        (b'{"params": {"guidance_scale": [-1e999]}}', "application/json", 422, "invalid_request"),
        (b"[]", "application/json", 422, "invalid_request"),
        (b"null", "application/json", 422, "invalid_request"),
        (b"7", "application/json", 422, "invalid_request"),
        (b'"text"', "application/json", 422, "invalid_request"),
        (b"", "application/json", 422, "invalid_request"),
        (b"", "", 422, "invalid_request"),
        (b" \n\t", "application/json", 400, "invalid_request"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"{}", "", 415, "unsupported_media_type"),
        (b"{}", "text/x+json", 415, "unsupported_media_type"),
        (b"{}", "+json", 415, "unsupported_media_type"),
        (b"{}", "application/+json", 415, "unsupported_media_type"),
        (b"{}", "application/jsonp", 415, "unsupported_media_type"),
        (b"{}", "application/json, text/plain", 415, "unsupported_media_type"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"--x\r\n", "multipart/form-data; boundary=x", 415, "unsupported_media_type"),
        (b'"' + b"x" * 2 * 1024 * 1024 + b'"', "application/json", 413, "body_too_large"),
        (b"x" * 2 * 1024 * 1024, "text/plain", 413, "body_too_large"),
    ],
)
def test_bodies_that_are_no_request(
    client: TestClient, content: bytes, media_type: str, status: int, code: str
) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    assert_envelope(client.post("/v1/jobs", content=content, headers=headers), status, code)


@pytest.mark.parametrize(
    "media_type",
    ["application/json", "Application/JSON ; charset=utf-8", "application/vnd.api+json", "application/a+b+json"],
)
def test_json_has_many_names(client: TestClient, media_type: str) -> None:
    response = client.post("/v1/jobs", content=json.dumps(GOOD), headers={"Content-Type": media_type})
    assert response.status_code == 201, response.text


def test_a_compressed_body_is_refused(client: TestClient) -> None:
    response = client.post("/v1/jobs", content=b"\x1f\x8b", headers={**JSON, "Content-Encoding": "gzip"})
    assert "Content-Encoding" in assert_envelope(response, 415, "unsupported_media_type")["message"]


def test_a_body_of_a_million_small_parts_is_read_without_ado(client: TestClient) -> None:
    body = b'{"type": "generate", "params": {"prompt": [' + b",".join([b"1"] * 500_000) + b"]}}"
    error = assert_envelope(client.post("/v1/jobs", content=body, headers=JSON), 422, "invalid_request")
    assert error["details"]["errors"][0]["path"] == "params.prompt"


WIDE = {str(number): 0 for number in range(100_000)}


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({**GOOD, **WIDE}, "body"),
        ({**GOOD, "metadata": WIDE}, "metadata"),
        ({**GOOD, "params": WIDE}, "params"),
        ({**GOOD, "options": {"oom_policy": WIDE}}, "options.oom_policy"),
        ([WIDE], "0"),
    ],
)
def test_an_object_of_a_hundred_thousand_fields_is_one_mistake(client: TestClient, body: Any, path: str) -> None:
    response = client.post("/v1/jobs", content=json.dumps(body, separators=(",", ":")), headers=JSON)
    error = assert_envelope(response, 422, "invalid_request")
    assert error["details"]["errors"] == [{"path": path, "message": "has more than 256 fields"}]


def test_nothing_of_a_refused_body_is_echoed(client: TestClient) -> None:
    for body in (_params(prompt="hunter2" * 5000), _params(scheduler="hunter2"), {**GOOD, "priority": "hunter2"}):
        response = client.post("/v1/jobs", json=body)
        assert response.status_code == 422
        assert "hunter2" not in response.text


@pytest.mark.parametrize("job_id", ["17", "x", str(uuid.UUID(int=7)), "%00", "%ff", "..%2f", "a" * 3000, "{}", "null"])
def test_ids_that_are_none_are_not_found(client: TestClient, job_id: str) -> None:
    for path in ("", "/artifacts", "/logs"):
        assert_envelope(client.get(f"/v1/jobs/{job_id}{path}"), 404, "not_found")
    assert_envelope(client.post(f"/v1/jobs/{job_id}/cancel"), 404, "not_found")


@pytest.mark.parametrize(
    "respelled",
    [
        lambda id: f"{{{id}}}",
        lambda id: f"urn:uuid:{id}",
        lambda id: id.replace("-", ""),
        lambda id: id.translate({ord("0") + digit: 0x0660 + digit for digit in range(10)}),
    ],
    ids=["braces", "urn", "no dashes", "other digits"],
)
def test_a_thing_has_one_address(
    client: TestClient, engine: Engine, object_store: ObjectStore, model: NewModel, respelled: Callable[[str], str]
) -> None:
    job = client.post("/v1/jobs", json=GOOD).json()
    finish(engine, object_store.blobs(), count=1)
    artifact = client.get(job["links"]["artifacts"]).json()["items"][0]
    for path in ("", "/artifacts", "/logs", "/logs?follow=true", "/progress", "/progress/stream"):
        assert client.get(f"/v1/jobs/{job['id']}{path}").status_code == 200
        assert_envelope(client.get(f"/v1/jobs/{respelled(job['id'])}{path}"), 404, "not_found")
    for method, path in (("POST", "/cancel"), ("POST", "/retry"), ("DELETE", "")):
        assert_envelope(client.request(method, f"/v1/jobs/{respelled(job['id'])}{path}"), 404, "not_found")
    for path in ("", "/content"):
        assert_envelope(client.get(f"/v1/artifacts/{respelled(artifact['id'])}{path}"), 404, "not_found")
    model_id = respelled(str(model.id))
    assert client.get(f"/v1/models/{model.id}").status_code == 200
    assert_envelope(client.get(f"/v1/models/{model_id}"), 404, "not_found")
    assert_envelope(client.get("/v1/jobs", params={"model_id": model_id}), 422, "unknown_model")
    assert_envelope(client.post("/v1/jobs", json={**GOOD, "model_id": model_id}), 422, "unknown_model")


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("cursor=banana", 400),
        ("cursor=%00", 400),
        ("cursor=%ff%fe", 400),
        ("cursor=" + "A" * 201, 400),
        ("cursor=", 400),
        ("limit=0", 422),
        ("limit=201", 422),
        ("limit=1e3", 422),
        ("limit=" + "9" * 5000, 422),
        ("limit=-1", 422),
        ("status=done", 422),
        ("status=%00", 422),
        ("type=paint", 422),
        ("model_id=%00", 422),
        ("model_id=nobody", 422),
        ("created_after=yesterday", 422),
        ("created_after=2026-01-01T00:00:00", 422),
        ("created_before=9999-12-31T23:59:59-23:59", 200),
        ("created_after=0001-01-01T00:00:00%2B23:59", 200),
        ("created_after=1e999", 422),
        ("created_after=NaN", 422),
        ("&".join(["status=queued"] * 21), 422),
        ("nonsense=1", 200),
    ],
)
def test_queries_that_make_no_sense(client: TestClient, query: str, status: int) -> None:
    response = client.get(f"/v1/jobs?{query}")
    assert response.status_code == status, response.text
    if status != 200:
        assert response.json()["error"]["code"] in {"invalid_request", "unknown_model"}
        assert len(response.content) < 4096


def test_a_cursor_of_another_list_is_refused(client: TestClient) -> None:
    job = client.post("/v1/jobs", json=GOOD).json()
    for made_up in ("banana", "", "A" * 201, encode_artifact_cursor(10**30, 5)):
        assert_envelope(client.get(f"{job['links']['artifacts']}?cursor={made_up}"), 400, "invalid_request")
    client.post("/v1/jobs", json=GOOD)
    cursor = client.get("/v1/jobs?limit=1").json()["next_cursor"]
    assert_envelope(client.get(f"{job['links']['artifacts']}?cursor={cursor}"), 400, "invalid_request")
    assert client.get(job["links"]["artifacts"]).json() == {"items": [], "next_cursor": None}


TEXTS = {
    "astral": "\U0001d51e 𒀀 \U0010fffd",
    "emoji": "👩\u200d👩\u200d👧\u200d👦 🏴\U000e0067\U000e0062\U000e007f",
    "combining": "e\u0301 a\u0308\u0323 \u0301begins with one",
    "composed and not": "\u00e9 e\u0301 \u212b \ufb01",
    "rtl": "שלום \u202eevil\u202c \u2067\u0645\u0631\u062d\u0628\u0627\u2069",
    "noncharacters": "\uffff \ufffe \ufdd0 \U0001ffff",
    "zero width": "a\u200bb\u200cc\u2060d",
    "bom inside": "a\ufeffb",
    "bom first": "\ufeffa",
    "line ends": "a\u0085b\u2028c\u2029d\r\ne\rf\x0bg\x0ch",
    "controls": "\x01\x02\x1b[31m\x7f\x9f",
    "blank": "  \t  \u00a0\u3000 ",
    "quotes": "'; DROP TABLE jobs; -- \\ \" %s %(x)s {x} ${x} $1 :x",
    "markup": "<script>alert(1)</script> &amp; (a:1.2), [b|c] <lora:x:1>",
    "replacement": "\ufffd",
    "longest": "\U0001f600" * 512,
}


@pytest.mark.parametrize("sent", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("escaped", [True, False], ids=["escaped", "plain"])
def test_every_text_comes_back_as_it_was_sent(client: TestClient, sent: str, escaped: bool) -> None:
    body = {**_params(negative_prompt=sent, prompt=sent), "metadata": {"value": sent, sent[:64]: "key"}}
    content = json.dumps(body, ensure_ascii=escaped).encode()
    response = client.post("/v1/jobs", content=content, headers=JSON)
    assert response.status_code == 201, response.text
    job = client.get(response.headers["Location"]).json()
    for told in (response.json(), job, client.get("/v1/jobs").json()["items"][0]):
        assert (told["params"]["prompt"], told["params"]["negative_prompt"]) == (sent, sent)
        assert told["metadata"] == body["metadata"]
    lines = client.get(job["links"]["logs"]).content.split(b"\n")
    assert [json.loads(line)["code"] for line in lines if line] == ["job.queued"]


def test_the_longest_prompt_is_taken_and_counted_in_characters(client: TestClient, engine: Engine) -> None:
    prompt = "\U0001f600" * 8192
    job = client.post("/v1/jobs", json=_params(prompt=prompt)).json()
    with engine.begin() as connection:
        stored = connection.execute(text("SELECT params_json ->> 'prompt' FROM jobs WHERE id = :id"), {"id": job["id"]})
        assert stored.scalar() == prompt


@pytest.mark.parametrize(
    ("fits", "is_too_much", "path"),
    [
        ({**GOOD, "count": 100}, {**GOOD, "count": 101}, "count"),
        (_params(prompt="x" * 8192), _params(prompt="x" * 8193), "params.prompt"),
        (_params(negative_prompt="x" * 8192), _params(negative_prompt="x" * 8193), "params.negative_prompt"),
        (_params(seed=2**32 - 1), _params(seed=2**32), "params.seed"),
        (_metadata(16, "x" * 512), _metadata(17, "x" * 512), "metadata"),
        (_metadata(1, "x" * 512), _metadata(1, "x" * 513), "metadata.0"),
        ({**GOOD, "metadata": {"x" * 64: ""}}, {**GOOD, "metadata": {"x" * 65: ""}}, f"metadata.{'x' * 64}.[key]"),
    ],
    ids=["count", "prompt", "negative prompt", "seed", "values", "value", "key"],
)
def test_a_limit_is_where_it_is_said_to_be(
    client: TestClient, fits: dict[str, Any], is_too_much: dict[str, Any], path: str
) -> None:
    response = client.post("/v1/jobs", json=fits)
    assert response.status_code == 201, response.text
    job = response.json()
    assert (job["count"], job["metadata"]) == (fits.get("count", 1), fits.get("metadata", {}))
    assert job["params"] == {**job["params"], **fits["params"]}
    error = assert_envelope(client.post("/v1/jobs", json=is_too_much), 422, "invalid_request")
    assert [part["path"] for part in error["details"]["errors"]] == [path]


@pytest.mark.parametrize("inner", ["1", "[]", '{"a": 1}'], ids=["a number", "an empty list", "an object"])
def test_twenty_levels_are_read_and_no_more(client: TestClient, inner: str) -> None:
    """Nothing in a job is that deep: what is read is refused for another reason."""

    def messages(levels: int) -> list[str]:
        # The body and `params` are two of them.
        lists = levels - 2 - (inner != "1")
        content = f'{{"type": "generate", "params": {{"prompt": {"[" * lists}{inner}{"]" * lists}}}}}'
        error = assert_envelope(client.post("/v1/jobs", content=content, headers=JSON), 422, "invalid_request")
        return [part["message"] for part in error["details"]["errors"]]

    deep = "is nested deeper than 20 levels"
    assert deep not in messages(20)
    assert messages(21) == [deep]


def test_a_body_of_exactly_the_limit_is_read_and_one_byte_more_is_not(client: TestClient) -> None:
    body = json.dumps(GOOD).encode()
    largest = body + b" " * (1_048_576 - len(body))
    for content in (largest, iter([largest[:1000], largest[1000:]])):
        assert client.post("/v1/jobs", content=content, headers=JSON).status_code == 201
    for content in (largest + b" ", iter([largest, b" "])):
        error = assert_envelope(client.post("/v1/jobs", content=content, headers=JSON), 413, "body_too_large")
        assert "1048576" in error["message"]


def test_prompts_and_metadata_stay_out_of_the_logs(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="dreamforge"):
        client.post("/v1/jobs", json={**_params(prompt="hunter2"), "metadata": {"a": "hunter2"}})
        client.post("/v1/jobs", json=_params(prompt="hunter2", width=7))
    assert "hunter2" not in caplog.text


def test_a_chunked_body_without_end_is_cut_at_the_limit(
    database_url: str, redis_url: str, object_store: ObjectStore, model: NewModel
) -> None:
    assert model
    state = api_state(database_url, redis_url, object_store.blobs(), max_body=64 * 1024)
    with served(state) as url, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 30) as connection:
        connection.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        told, sent = b"", 0
        # The end of the body never comes; the answer does, and then the connection ends.
        with contextlib.suppress(OSError):
            while sent < 64 * 1024 * 1024:
                connection.sendall(b"2000\r\n" + b" " * 0x2000 + b"\r\n")
                sent += 0x2000
        # What arrived before a reset is still there to read.
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                told += part
    assert told.startswith(b"HTTP/1.1 413 ")
    assert b'"body_too_large"' in told
    assert sent < 64 * 1024 * 1024, "the connection is cut"
