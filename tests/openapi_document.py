"""The OpenAPI document and the copy of it that is kept: `python -m tests.openapi_document` writes the copy anew."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamforge.api.app import create_app
from dreamforge.api.state import ApiRules, ApiState
from dreamforge.blobs import Blobs, BlobSettings
from dreamforge.store.engine import open_async_engine

COPY = Path(__file__).with_name("openapi.json")
_PROSE = {"description", "summary", "title", "example", "examples"}
_NAMES = {"properties", "schemas", "responses", "headers", "paths", "content", "$defs"}
"""Whose keys are names, not keywords."""


def document() -> dict[str, Any]:
    """What the application tells of itself. It speaks to no server for that."""
    nowhere = "127.0.0.1:1"
    blobs = Blobs(
        BlobSettings(
            endpoint=f"http://{nowhere}",
            public_endpoint=f"http://{nowhere}",
            access_key="nobody",
            secret_key="nothing",
            bucket="none",
            region="us-east-1",
        )
    )
    rules = ApiRules(redis_outage="accept", max_body=1024, presign_ttl=60, heartbeat_seconds=5.0)
    engine = open_async_engine(f"postgresql://nobody@{nowhere}/none", application="tests")
    app = create_app(ApiState(engine=engine, blobs=blobs, redis_url=f"redis://{nowhere}/0", rules=rules))
    return json.loads(json.dumps(app.openapi()))


def differences(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """What a client could notice: everything but prose, examples and the order of things."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = place.rpartition("/")[2] in _NAMES
        for key in sorted({*before, *after}):
            if key in _PROSE and not names:
                continue
            here = f"{place}/{key.replace('/', '~1')}"
            if key not in after:
                yield f"gone:    {here}"
            elif key not in before:
                yield f"new:     {here}"
            else:
                yield from differences(before[key], after[key], here)
    elif isinstance(before, list) and isinstance(after, list):
        was, now = _by_name(before), _by_name(after)
        yield from (f"gone:    {place}: {name}" for name in was if name not in now)
        yield from (f"new:     {place}: {name}" for name in now if name not in was)
        for name in was.keys() & now.keys():
            yield from differences(was[name], now[name], f"{place}/{name}")
    elif before != after:
        yield f"changed: {place}: {before!r} to {after!r}"


def _by_name(values: list[Any]) -> dict[str, Any]:
    return {
        value["name"] if isinstance(value, dict) and "name" in value else json.dumps(value, sort_keys=True): value
        for value in values
    }


if __name__ == "__main__":
    COPY.write_text(json.dumps(document(), indent=1, ensure_ascii=False, sort_keys=True) + "\n")
