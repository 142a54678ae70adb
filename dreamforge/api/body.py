"""Request bodies, read strictly: JSON as the standard has it, text that Postgres can keep, bounded depth and width."""

import asyncio
import json
import math
import re
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from dreamforge.api.errors import BAD_JSON, HttpError

MOST_SECONDS = 30.0
"""In which a body must have come. The edge has a limit for the first 16 KiB of it only."""
MOST_DEPTH = 20
"""Of objects and lists in each other; the body is the first."""
MOST_FIELDS = 256
"""Of one object. No request has that many, and each that is not known would become an error of its own."""
_MEDIA_TYPE = re.compile(r"application/(?:[a-z0-9!#$&^_.+-]+\+)?json")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class _Refusal(Exception):
    """A part of the body that cannot be kept, and where it stands, from the inside out."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.places: list[str] = []

    @property
    def path(self) -> str:
        return ".".join(reversed(self.places))[:200] or "body"


class StrictRequest(Request):
    """A request whose body must be JSON: no NaN, no duplicate keys, no NUL, no lone surrogates.

    Every other text comes through as it was sent: nothing is normalised, and a byte order mark inside is a character.
    """

    _bytes: bytes | None = None

    async def body(self) -> bytes:
        """The body's bytes. Raises 408 when they are too slow, 413 when they are too many, 415 without JSON's type."""
        if self._bytes is not None:
            return self._bytes
        rules = self.app.state.api.rules
        try:
            async with asyncio.timeout(rules.body_seconds):
                data = self._bytes = await self._limited_body(rules.max_body)
        except TimeoutError as error:
            raise HttpError(408, "The body of the request did not arrive in time.") from error
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if data and not _MEDIA_TYPE.fullmatch(media_type):
            raise HttpError(415, "Send the body as application/json.")
        if self.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise HttpError(415, "Send the body without a Content-Encoding.")
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
            raise HttpError(400, BAD_JSON) from error
        try:
            _check(value, depth=0)
        except _Refusal as refusal:
            details = {"errors": [{"path": refusal.path, "message": refusal.reason}]}
            raise HttpError(422, "The request is not valid.", details=details) from refusal
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


def _check(value: Any, *, depth: int) -> None:
    match value:
        case dict() | list() if depth >= MOST_DEPTH:
            raise _Refusal(f"is nested deeper than {MOST_DEPTH} levels")
        case str() if _UNSTORABLE.search(value):
            raise _Refusal("holds NUL or half a surrogate pair")
        case float() if math.isinf(value):
            raise _Refusal("is too large a number")
        case dict() if len(value) > MOST_FIELDS:
            raise _Refusal(f"has more than {MOST_FIELDS} fields")
        case dict():
            for key in value:
                _check(key, depth=depth)
            _check_each(value.items(), depth=depth + 1)
        case list():
            _check_each(enumerate(value), depth=depth + 1)
        case _:
            pass


def _check_each(parts: Iterable[tuple[Any, Any]], *, depth: int) -> None:
    place: object = None
    try:
        for place, part in parts:  # noqa: B007 - read when a part is refused
            _check(part, depth=depth)
    except _Refusal as refusal:
        # The path is put together on the way out: most bodies need none.
        refusal.places.append(_UNSTORABLE.sub("\ufffd", str(place))[:64])
        raise
