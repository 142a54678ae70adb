"""Where a server of the user's own is: read from a setting, and told without what is secret in it."""

import re
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from dreamforge.embedded.trouble import StackError

_MOST_WORDS = 300
# How clients begin: numbers of errors, and what we have said already.
_NOISE = re.compile(r"\[Errno -?\d+\] |Error -?\d+ connecting to \S+ |Command # \d+ \(.*?\) of pipeline caused error: ")


class Address:
    """The URL that ``setting`` holds. Raises ``StackError`` when it is none of the ``schemes``.

    Clients read a malformed URL each in its own way, and repeat pieces of it, of which a password may be one. So only
    what cannot be misread is let through, and no message repeats it.
    """

    def __init__(self, *, setting: str, server: str, url: str, schemes: Sequence[str], example: str) -> None:
        self._setting = setting
        self._server = server
        self._example = example
        self._parts = self._split(url, schemes)

    @property
    def place(self) -> str:
        """`host:port`, or the path of a socket."""
        parts = self._parts
        return parts.netloc.rpartition("@")[2] or parts.path

    def require_bare(self) -> None:
        """Raise ``StackError`` when there is more than a scheme, a host and a port."""
        parts = self._parts
        if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
            raise StackError(f"{self._setting} must be a host and a port alone, like {self._example}.")

    def trouble(self, reason: str) -> StackError:
        """That the server cannot be used, and why."""
        words = _NOISE.sub("", " ".join(reason.split()))[:_MOST_WORDS].rstrip(".")
        return StackError(f"{self._setting}: {self._server} at {self.place} cannot be used: {words}.")

    def _split(self, url: str, schemes: Sequence[str]) -> SplitResult:
        hint = " (what is special in a password must be percent-encoded)" if "password" in self._example else ""
        malformed = StackError(f"{self._setting} is not like {self._example}{hint}.")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            # Without its cause, which repeats the URL.
            raise malformed from None
        has_place = bool(parts.hostname) or (parts.scheme not in {"http", "https", "redis", "rediss"} and port is None)
        behind = parts.path + parts.query + parts.fragment
        if parts.scheme not in schemes or not has_place or parts.netloc.count("@") > 1 or "@" in behind:
            raise malformed
        return parts
