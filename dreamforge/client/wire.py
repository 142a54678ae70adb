"""What both clients know about HTTP: addresses, time limits, and the border for httpx's errors."""

from typing import Any
from urllib.parse import urlsplit

import httpx2

from dreamforge.client.calls import Call
from dreamforge.client.errors import UnexpectedAnswer, Unreachable

DEFAULT_URL = "http://127.0.0.1:8700"
_CONNECT_SECONDS = 3.0
_SILENCE_SECONDS = 45.0
"""A stream that is silent for so long is dead: the service gives a sign of life at least every 30 s."""


class Wire:
    """The service's address, and the errors of the way there."""

    def __init__(self, base_url: str, *, timeout: float) -> None:
        self._base_url = base_url.rstrip("/")
        self._seconds = timeout
        self.timeout = self._timeout(read=timeout)
        self.stream_timeout = self._timeout(read=_SILENCE_SECONDS)

    def url(self, call: Call[Any]) -> str:
        """Where a call goes."""
        return self.url_of(call.path)

    def url_of(self, path: str) -> str:
        """Where a path of the service is."""
        return f"{self._base_url}{path}"

    def timeout_of(self, call: Call[Any]) -> httpx2.Timeout:
        """How long the call's answer may take."""
        return self._timeout(read=min(self._seconds + call.patience, call.most))

    def _timeout(self, *, read: float) -> httpx2.Timeout:
        return httpx2.Timeout(self._seconds, connect=min(read, self._seconds, _CONNECT_SECONDS), read=read)

    def unreachable(
        self, error: httpx2.RequestError | httpx2.InvalidURL, *, store_url: str | None = None
    ) -> Unreachable:
        """Nobody answered: the service, or the store when its URL is given. The cause is kept."""
        url = self._base_url if store_url is None else _without_query(store_url)
        trouble = Unreachable(url, str(error) or type(error).__name__, is_store=store_url is not None)
        trouble.__cause__ = error
        return trouble

    def refusal(self, url: str, status: int) -> UnexpectedAnswer | None:
        """What the object store's status means; None when the bytes follow."""
        return None if status == 200 else UnexpectedAnswer(_without_query(url), status=status)


def _without_query(url: str) -> str:
    # A presigned URL's query is a key to the object: not for messages.
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"
