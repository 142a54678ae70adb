"""The OpenAPI document: what FastAPI makes of the routes, completed so that a client can be generated from it.

Each answer gets its headers and an example, each error the envelope, and each operation the errors that any request may
meet. A route says which errors are its own by ``error_responses``, and its streams by ``lines_of`` and ``events_of``.
"""

import json
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from dreamforge.api.errors import RETRY_AFTER_SECONDS
from dreamforge.api.examples import EXAMPLES, TEXTS, error_example
from dreamforge.api.hosts import OPEN_PATHS
from dreamforge.api.schemas import ErrorBody, ErrorEnvelope

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
TAGS = [
    {"name": "jobs", "description": "Ask for images, wait for them, change one's mind."},
    {"name": "events", "description": "What has happened to a job, and what happens: logs, progress, streams."},
    {"name": "artifacts", "description": "Finished images."},
    {"name": "models", "description": "What images can be drawn with, the parameters of each, and how to get more."},
    {"name": "health", "description": "For probes and for Prometheus."},
]
SERVERS = [{"url": "/", "description": "Where this document was read."}]
NOT_MODIFIED: dict[str, Any] = {"description": "`If-None-Match` names what would be answered"}

_DESCRIPTION = """\
Every answer has `X-Request-Id`. Every error has the shape of `ErrorEnvelope`, with a stable `code`, below 4 KB.
Times are RFC 3339 in UTC. Unknown fields of a body are refused; a client should ignore unknown fields of an answer.
Lists are read on with `cursor`, which is opaque.
"""
_ANYBODY_S = (403, 408, 500, 503)
_PROBES_TOO = (403,)
_MEANING_OF_STATUS = {
    400: "The request is malformed",
    403: "The host name is not one that the service answers to",
    404: "There is no such thing",
    405: "The address does not take this method",
    408: "The request did not arrive in time",
    409: "The state of things does not allow it",
    413: "The body is too large",
    415: "The body is not declared as JSON",
    422: "The request is not valid",
    429: "Too much at once",
    500: "A bug",
    503: "A dependency is away, or the service is starting or stopping: `service_unavailable`",
}


def lines_of(line: type[BaseModel]) -> dict[str, Any]:
    """The response of a route that answers one JSON object a line: ``responses={200: lines_of(LogLine)}``."""
    return {"content": {NDJSON: {"schema": line.model_json_schema(ref_template=_REF)}}}


def events_of(event: type[BaseModel]) -> dict[str, Any]:
    """The response of a route that answers server-sent events, with this shape as each one's `data`."""
    schema = {
        "type": "string",
        "description": f"Server-sent events: `id` is the `seq`, `event` the `code`, `data` a {event.__name__} as JSON.",
        "contentMediaType": "application/json",
        "contentSchema": event.model_json_schema(ref_template=_REF),
    }
    return {"content": {SSE: {"schema": schema}}}


def with_headers(*names: str) -> dict[str, Any]:
    """Of a response that has these beside the headers of its status: ``responses={200: with_headers("ETag")}``."""
    return {"headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names}}


def install_document(app: FastAPI) -> None:
    """Have `/openapi.json` and `/docs` show the completed document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(
                get_openapi(
                    title=app.title,
                    version=app.version,
                    summary=app.summary,
                    description=_DESCRIPTION,
                    routes=app.routes,
                    tags=TAGS,
                    servers=SERVERS,
                )
            )
        return app.openapi_schema

    app.openapi = document


_REF = "#/components/schemas/{model}"


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for name, schema in schemas.items():
        if name in EXAMPLES:
            schema["examples"] = EXAMPLES[name]
    schemas["ErrorBody"] = ErrorBody.model_json_schema()
    schemas["ErrorEnvelope"] = {**ErrorEnvelope.model_json_schema(ref_template=_REF), "examples": [error_example(422)]}
    schemas["ErrorEnvelope"].pop("$defs")
    components["headers"] = _HEADERS
    for path, operation in _operations(document):
        for status in _met_by_any_request(path):
            operation["responses"].setdefault(str(status), {})
        operation["responses"] = dict(sorted(operation["responses"].items()))
        for status, response in operation["responses"].items():
            _complete(response, int(status), is_health=not path.startswith("/v1/"))
        _lift_definitions(operation, schemas)
    return document


def _met_by_any_request(path: str) -> tuple[int, ...]:
    if path.startswith("/v1/"):
        return _ANYBODY_S
    return () if path in OPEN_PATHS else _PROBES_TOO


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            yield path, operation


def _complete(response: dict[str, Any], status: int, *, is_health: bool) -> None:
    named = {"X-Request-Id", *_HEADERS_OF_STATUS.get(status, ())}
    response["headers"] = {**with_headers(*sorted(named))["headers"], **response.get("headers", {})}
    # A probe is told what is away in a shape of its own.
    if status >= 400 and not (is_health and "content" in response):
        response["description"] = _MEANING_OF_STATUS.get(status, "The request is not valid")
        schema = {"$ref": "#/components/schemas/ErrorEnvelope"}
        response["content"] = {"application/json": {"schema": schema, "example": error_example(status)}}
    for media_type, content in response.get("content", {}).items():
        if example := _example(media_type, content.get("schema", {})):
            content.setdefault("example", example)


def _example(media_type: str, schema: dict[str, Any]) -> Any:
    name = schema.get("$ref", "").rpartition("/")[2] or schema.get("contentSchema", schema).get("title", "")
    examples = EXAMPLES.get(name)
    if media_type == NDJSON and examples:
        return "".join(f"{json.dumps(example)}\n" for example in examples)
    if media_type == SSE and examples:
        return "".join(
            f"id: {example['seq']}\nevent: {example['code']}\ndata: {json.dumps(example)}\n\n" for example in examples
        )
    return examples[0] if examples else TEXTS.get(media_type)


def _lift_definitions(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Put what a stream's schema defines for itself where its references point to."""
    for response in operation["responses"].values():
        for content in response.get("content", {}).values():
            schema = content.get("schema", {})
            for part in (schema, schema.get("contentSchema", {})):
                for name, definition in part.pop("$defs", {}).items():
                    schemas.setdefault(name, definition)


def _header(description: str, example: Any, **schema: Any) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string", **schema}, "example": example}


_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": _header(
        "The caller's own, if it sent a sane one; else made up.", "8f14e45fceea467a9b1c2d3e4f5a6b7c"
    ),
    "Location": _header("Where the new thing is.", "/v1/jobs/01936b2e-7c1a-7b5e-9d0c-3f6a1f0b2c3d"),
    "ETag": _header("Names exactly this content; for `If-None-Match`.", '"9f86d081884c7d659a2feaa0c55ad015"'),
    "Retry-After": _header("Seconds to wait.", RETRY_AFTER_SECONDS, type="integer", minimum=0),
    "Allow": _header("The methods that the address takes.", "GET, POST"),
    "Idempotency-Replayed": _header("There when an earlier request with the key made the job.", "true", enum=["true"]),
    "Preference-Applied": _header("There when the answer was held: for how long at most.", "wait=30"),
    "Accept-Ranges": _header("The service sends the whole; the store sends parts.", "none", enum=["none"]),
    "Cache-Control": _header("Kept, but asked about each time.", "private, no-cache"),
    "Content-Disposition": _header(
        "Shown, and saved under this name.", 'inline; filename="01936b2e-7c1a-7b5e-9d0c-3f6a1f0b2c3d_0.png"'
    ),
    "Content-Length": _header("Bytes of the file.", 1402331, type="integer", minimum=0),
    "X-Content-Type-Options": _header("The type is not to be guessed.", "nosniff", enum=["nosniff"]),
}
_HEADERS_OF_STATUS = {
    201: ("Location",),
    304: ("ETag",),
    307: ("Location",),
    405: ("Allow",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}
ETAG: dict[str, Any] = with_headers("ETag")
"""For a response that carries one."""
