"""What is answered to those who ask for a WebSocket: there is none.

The edge drops `Upgrade`, so that it is asked for only by who speaks to a replica itself. Left alone, the server would
refuse with an empty 403 in plain text.
"""

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from dreamforge.api.errors import envelope
from dreamforge.errors import InvalidRequest

_REFUSAL = "The service has no WebSockets. Ask without Upgrade; live progress comes as server-sent events."


class UpgradeMiddleware:
    """Refuses WebSockets. Pure ASGI, so that streams pass untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 400."""
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        answer = envelope(HTTPConnection(scope), 400, InvalidRequest.code, _REFUSAL)
        await answer(scope, receive, send)
