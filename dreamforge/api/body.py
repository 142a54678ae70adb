"""Request bodies, read strictly: JSON as the standard has it, text that Postgres can keep, bounded depth."""

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from dreamforge.api.errors import HttpError

MOST_DEPTH = 20
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_BAD_JSON = "The body is not valid JSON."


class StrictRequest(Request):
    """A request whose body must be JSON: no NaN, no duplicate keys, no NUL, no lone surrogates."""

    _bytes: bytes | None = None

    async def body(self) -> bytes:
        """The body's bytes. Raises 413 when they are too many, 415 when they are not declared as JSON."""
        if self._bytes is not None:
            return self._bytes
        data = self._bytes = await self._limited_body(self.app.state.api.rules.max_body)
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if data and not (media_type == "application/json" or media_type.endswith("+json")):
            raise HttpError(415, "Send the body as application/json.")
        return data

    async def _limited_body(self, most: int) -> bytes:
        # Counted while reading: Content-Length may lie, and a chunked body has none.
        data = bytearray()
        async for chunk in self.stream():
            data += chunk
            if len(data) > most:
                raise HttpError(413, f"The request body is larger than {most} bytes.")
        return bytes(data)

    async def json(self) -> Any:
        """The body's value. Raises 400 when it is no JSON, 422 when its text cannot be kept."""
        try:
            text = (await self.body()).decode("utf-8")
            value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise HttpError(400, _BAD_JSON) from error
        _check(value, path="", depth=0)
        return value


class StrictRoute(APIRoute):
    """A route that reads its body strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler, over a ``StrictRequest``."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice")
    return value


def _check(value: Any, *, path: str, depth: int) -> None:
    if depth > MOST_DEPTH:
        _refuse(path, f"is nested deeper than {MOST_DEPTH} levels")
    match value:
        case str() if _UNSTORABLE.search(value):
            _refuse(path, "holds NUL or half a surrogate pair")
        case float() if value in (float("inf"), float("-inf")):
            _refuse(path, "is too large a number")
        case dict():
            for key, inner in value.items():
                _check(key, path=path, depth=depth)
                _check(inner, path=f"{path}.{key}"[:200].lstrip("."), depth=depth + 1)
        case list():
            for index, inner in enumerate(value):
                _check(inner, path=f"{path}.{index}"[:200].lstrip("."), depth=depth + 1)
        case _:
            pass


def _refuse(path: str, reason: str) -> NoReturn:
    safe = _UNSTORABLE.sub("\ufffd", path)
    raise HttpError(422, "The request is not valid.", details={"errors": [{"path": safe, "message": reason}]})
