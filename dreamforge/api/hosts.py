"""Which names the service answers to.

A web page can have its own host name point at a service in the reader's network (DNS rebinding) and then speak to it as
its own origin. The browser still sends the page's name as `Host`. So names must be known; an address is no name, and
needs none to be known: nobody can rebind it.
"""

import ipaddress
import re
import socket
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from dreamforge.api.errors import envelope
from dreamforge.errors import Forbidden

ANY = "*"
OPEN_PATHS = frozenset({"/healthz"})
"""Probes send what they like, and learn nothing there."""
_HOST = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::[0-9]{0,5})?")
_REFUSAL = "The service does not answer to this host name. DREAMFORGE_ALLOWED_HOSTS lists those it answers to."


def names_of_this_machine(*configured: str) -> frozenset[str]:
    """localhost, the machine's own name with and without its domain, that name in `.local`, and ``configured``."""
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    return frozenset({"localhost", name, short, f"{short}.local", *(host.lower() for host in configured)})


def is_allowed(host: str, allowed: Sequence[str]) -> bool:
    """Whether `Host` is an address or one of the names. `*.example.org` is every name below it, `*` is any host."""
    if ANY in allowed:
        return True
    match = _HOST.fullmatch(host.strip().lower())
    if match is None:
        return False
    name = match["host"].strip("[]").rstrip(".")
    return _is_address(name) or any(
        name.endswith(pattern[1:]) if pattern.startswith("*.") else name == pattern for pattern in allowed
    )


class HostMiddleware:
    """Refuses requests to names that are not allowed. Pure ASGI, so that streams pass untouched.

    A request without `Host` comes from no browser and passes.
    """

    def __init__(self, app: ASGIApp, *, allowed: Sequence[str]) -> None:
        self._app = app
        self._allowed = tuple(pattern.lower().rstrip(".") for pattern in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS or self._knows_all(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        answer = envelope(HTTPConnection(scope), 403, Forbidden.code, _REFUSAL)
        await answer(scope, receive, send)

    def _knows_all(self, headers: Headers) -> bool:
        return all(is_allowed(host, self._allowed) for host in headers.getlist("host"))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
