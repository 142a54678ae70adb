"""`X-Request-Id` on every answer: the caller's when it is sane, else one of our own."""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"
_SANE = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# The second is how a WebSocket is refused.
_STARTS = {"http.response.start", "websocket.http.response.start"}


class RequestIdMiddleware:
    """Gives each request its id. Pure ASGI, so that streams pass untouched.

    ``adds_header`` is off where the server in front adds the header itself, as Ray Serve does.
    """

    def __init__(self, app: ASGIApp, *, adds_header: bool = True) -> None:
        self._app = app
        self._adds_header = adds_header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add the header to the answer."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _SANE.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] in _STARTS and self._adds_header:
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


def request_id_of(request: HTTPConnection) -> str:
    """The request's id."""
    return getattr(request.state, "request_id", "")
