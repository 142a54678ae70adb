"""The OpenAPI document: whole, valid, and not changed by accident."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from pydantic import BaseModel

from dreamforge.api.hosts import OPEN_PATHS
from dreamforge.api.openapi import NDJSON, SSE, events_of, install_document, lines_of
from dreamforge.api.schemas import LogLine
from tests.openapi_document import COPY, differences, document

DOCUMENT = document()
OPERATIONS = {
    operation["operationId"]: (path, method, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}
_every_operation = pytest.mark.parametrize("operation_id", OPERATIONS)


def test_nothing_has_changed_that_clients_rely_on() -> None:
    before = json.loads(COPY.read_text())
    changes = [line for part in ("paths", "components") for line in differences(before[part], DOCUMENT[part], part)]
    assert not changes, "\n".join(
        [
            "The API is not what tests/openapi.json says. What is gone or changed breaks clients.",
            "If it is meant: `make openapi` writes the copy anew; commit it with the change.",
            *changes,
        ]
    )


def test_the_comparison_sees_what_clients_would_notice() -> None:
    def changed(**changes: Any) -> list[str]:
        before = {"properties": {"a": {"type": "string", "description": "x"}}, "required": ["a"]}
        return list(differences(before, {**before, **changes}))

    assert changed() == []
    assert changed(properties={"a": {"type": "string", "description": "y"}}) == []
    assert changed(properties={}) == ["gone:    /properties/a"]
    assert changed(properties={"a": {"type": "integer"}}) == ["changed: /properties/a/type: 'string' to 'integer'"]
    assert changed(required=["a", "b"]) == ['new:     /required: "b"']


def test_it_is_valid_openapi() -> None:
    validate(DOCUMENT)


def test_it_says_where_the_service_is_and_what_the_tags_mean() -> None:
    assert DOCUMENT["servers"][0]["url"] == "/"
    described = {tag["name"] for tag in DOCUMENT["tags"] if tag["description"]}
    assert {tag for _, _, operation in OPERATIONS.values() for tag in operation["tags"]} <= described


@_every_operation
def test_every_operation_is_described(operation_id: str) -> None:
    path, _, operation = OPERATIONS[operation_id]
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"]
    named = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}
    assert all(f"{{{name}}}" in path for name in named)


@_every_operation
def test_every_answer_says_its_headers_and_every_error_is_the_envelope(operation_id: str) -> None:
    path, _, operation = OPERATIONS[operation_id]
    for status, response in operation["responses"].items():
        assert response["description"]
        assert "X-Request-Id" in response["headers"]
        if int(status) in {429, 503}:
            assert "Retry-After" in response["headers"]
        if int(status) in {201, 307}:
            assert "Location" in response["headers"]
        if int(status) >= 400 and path.startswith("/v1/"):
            content = response["content"]["application/json"]
            assert content["schema"] == {"$ref": "#/components/schemas/ErrorEnvelope"}
            assert content["example"]["error"]["code"]
    if path.startswith("/v1/"):
        assert {"403", "408", "500", "503"} <= set(operation["responses"])


@_every_operation
def test_every_route_that_checks_the_host_says_so(operation_id: str) -> None:
    path, _, operation = OPERATIONS[operation_id]
    if path in OPEN_PATHS:
        assert "403" not in operation["responses"]
        return
    content = operation["responses"]["403"]["content"]
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorEnvelope"}
    assert content["application/json"]["example"]["error"]["code"] == "forbidden"


def test_what_only_some_answers_have_is_described() -> None:
    created = OPERATIONS["create_job"][2]["responses"]["201"]["headers"]
    assert {"Location", "Idempotency-Replayed", "Preference-Applied"} <= set(created)
    slow = OPERATIONS["create_job"][2]["responses"]["408"]["content"]["application/json"]
    assert slow["example"]["error"]["code"] == "request_timeout"
    progress = DOCUMENT["components"]["schemas"]["JobProgress"]["properties"]
    assert "from 1" in progress["queue_position"]["description"]


@_every_operation
def test_every_body_and_answer_has_an_example_that_fits_it(operation_id: str) -> None:
    _, _, operation = OPERATIONS[operation_id]
    for schema, example in _examples(operation):
        _validator(schema).validate(example)


def _examples(operation: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    parts = [operation["requestBody"]] if "requestBody" in operation else []
    for part in [*parts, *operation["responses"].values()]:
        for media_type, content in part.get("content", {}).items():
            schema = content["schema"]
            if schema.get("format") == "binary":
                continue
            examples = DOCUMENT["components"]["schemas"].get(schema.get("$ref", "").rpartition("/")[2], {})
            found = [content["example"]] if "example" in content else examples.get("examples", [])
            assert found, f"no example for {media_type} {schema}"
            if media_type == NDJSON:
                yield from ((schema, json.loads(line)) for text in found for line in text.splitlines())
            elif media_type == SSE:
                lines = [line for text in found for line in text.splitlines() if line.startswith("data: ")]
                yield from ((schema["contentSchema"], json.loads(line.removeprefix("data: "))) for line in lines)
            else:
                yield from ((schema, example) for example in found)


def _validator(schema: Any) -> Draft202012Validator:
    return Draft202012Validator(_closed({"components": DOCUMENT["components"], **schema}))


def _closed(schema: Any) -> Any:
    """The schema with every object that names its fields having no others: answers are open, examples are exact."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(part) for key, part in schema.items()}
    return {"additionalProperties": False, **closed} if isinstance(schema.get("properties"), dict) else closed


def test_an_example_with_a_field_that_no_answer_has_is_noticed() -> None:
    job = OPERATIONS["get_job"][2]["responses"]["200"]["content"]["application/json"]
    links = {**job["example"]["links"], "undo": "/v1/jobs/1/undo"}
    assert _validator(job["schema"]).is_valid(job["example"])
    assert not _validator(job["schema"]).is_valid({**job["example"], "links": links})


def test_streams_are_described_by_their_lines_and_events() -> None:
    class Inner(BaseModel):
        fraction: float

    class StreamEvent(LogLine):
        progress: Inner

    app = FastAPI()
    for path, response in (("/v1/lines", lines_of(LogLine)), ("/v1/events", events_of(StreamEvent))):

        @app.get(path, operation_id=path, responses={200: response}, response_class=StreamingResponse)
        async def stream() -> None: ...

    install_document(app)
    described = json.loads(json.dumps(app.openapi()))
    validate(described)
    lines = described["paths"]["/v1/lines"]["get"]["responses"]["200"]["content"][NDJSON]
    assert lines["schema"]["properties"]["seq"]["type"] == "integer"
    assert json.loads(lines["example"])["seq"] == 17
    events = described["paths"]["/v1/events"]["get"]["responses"]["200"]["content"][SSE]
    assert events["schema"]["contentSchema"]["properties"]["progress"] == {"$ref": "#/components/schemas/Inner"}
    assert described["components"]["schemas"]["Inner"]["properties"]["fraction"]["type"] == "number"
    assert events["example"].startswith("id: 17\nevent: item.progress\ndata: {")


def test_a_generator_finds_no_name_twice() -> None:
    # Generators call an object inside of a schema by both their titles.
    schemas = DOCUMENT["components"]["schemas"]
    inner = [
        f"{name}{rule.get('title', '')}".replace(" ", "").lower()
        for name, schema in schemas.items()
        for rule in schema.get("properties", {}).values()
        if rule.get("type") == "object"
    ]
    taken = [name.lower() for name in schemas]
    assert len({*inner, *taken}) == len(inner) + len(taken)
    assert len(OPERATIONS) == sum(len(operations) for operations in DOCUMENT["paths"].values())


def test_the_envelope_is_described_once() -> None:
    assert "HTTPValidationError" not in json.dumps(DOCUMENT)
    properties = DOCUMENT["components"]["schemas"]["ErrorBody"]["properties"]
    assert set(properties) == {"code", "message", "details", "job_id", "request_id"}
