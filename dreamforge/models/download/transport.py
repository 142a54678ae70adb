"""HTTP as downloads speak it: who may be asked, by which scheme, and what of a request goes where."""

import contextlib
import ipaddress
import ssl
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationValueError,
    NameResolutionError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.response import BaseHTTPResponse

from dreamforge import __version__
from dreamforge.errors import DownloadCorrupt, SourceForbidden, SourceUnavailable
from dreamforge.models.remote import Location

_USER_AGENT = f"dreamforge/{__version__}"
_MOST_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_CONNECTIONS = 32


class Answer:
    """An answer that is being read. ``location``: where it came from in the end. Close it: it holds a connection."""

    def __init__(self, response: BaseHTTPResponse, location: Location) -> None:
        self.location = location
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self._response = response

    @property
    def host(self) -> str:
        """Who has answered."""
        return urlsplit(self.location.url).hostname or ""

    def read(self, most: int) -> bytes:
        """The next bytes, as soon as there are any; none at the end. Raises ``SourceUnavailable``."""
        try:
            # Neither does a single read wait for all of `most`, nor is what came lost when the next one fails.
            return self._response.read1(most)
        except ReadTimeoutError as error:
            raise _unavailable(self.host, "is silent", "stalled") from error
        except (HTTPError, OSError) as error:
            raise _unavailable(self.host, "has broken off", "broken_off") from error

    def stop(self) -> None:
        """Wake up whoever reads: nothing more comes. For another thread."""
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            self._response.shutdown()

    def close(self) -> None:
        """Give the connection back when everything was read, else close it."""
        with contextlib.suppress(HTTPError, OSError, ValueError):
            if self._response.length_remaining == 0:
                # The standard library notices the end of an answer by reading at it.
                self._response.read1(1)
            if self._response.closed:
                self._response.release_conn()
            else:
                self._response.close()


class Transport:
    """Connections to the places that models come from. Thread-safe.

    Only https is spoken; http to this machine's loopback and to ``plain_hosts`` (`host:port`), and never after https.
    ``proxies``: by scheme; None: those of the environment, as curl and huggingface_hub take them. ``longest_wait``: the
    seconds that ``get`` takes with everybody who answers at all; a head that never ends, or a name, takes longer.
    """

    def __init__(
        self,
        *,
        plain_hosts: Collection[str] = (),
        user_agent: str = _USER_AGENT,
        proxies: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        connect_seconds: float = 10.0,
        read_seconds: float = 60.0,
    ) -> None:
        self._plain_hosts = frozenset(plain_hosts)
        self._user_agent = user_agent
        self._options: dict[str, Any] = {
            "maxsize": _MOST_CONNECTIONS,
            "ssl_context": tls or _trusting_the_system(),
            "timeout": urllib3.Timeout(connect=connect_seconds, read=read_seconds),
        }
        self.longest_wait = (_MOST_REDIRECTS + 1) * (connect_seconds + read_seconds)
        self._direct = urllib3.PoolManager(**self._options)
        self._proxies = {
            scheme: urllib3.ProxyManager(url, **self._options)
            for scheme, url in (getproxies() if proxies is None else proxies).items()
            if scheme in {"http", "https"}
        }

    def get(self, location: Location, headers: Mapping[str, str]) -> Answer:
        """Ask for what is at ``location``, wherever it leads.

        Raises ``SourceUnavailable`` when nobody answers, ``SourceForbidden`` for an address that may not be asked, and
        ``DownloadCorrupt`` for redirects without end.
        """
        for _ in range(_MOST_REDIRECTS + 1):
            answer = self._ask(location, headers)
            if answer.status not in _REDIRECTS:
                return answer
            answer.close()
            location = _followed(location, answer.headers.get("Location"))
        host = urlsplit(location.url).hostname
        raise DownloadCorrupt(f"{host} redirects more than {_MOST_REDIRECTS} times.")

    def _ask(self, location: Location, headers: Mapping[str, str]) -> Answer:
        parts = self._permitted(location.url)
        host = parts.hostname or ""
        # Nothing that is packed on the way: what is counted and hashed are the file's own bytes.
        sent = {"User-Agent": self._user_agent, "Accept-Encoding": "identity", **location.headers, **headers}
        with _transport_errors(host):
            response = self._pool(parts).request(
                "GET",
                location.url,
                headers=sent,
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=False,
            )
        return Answer(response, location)

    def _permitted(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            is_permitted = bool(parts.hostname) and not parts.username and self._speaks(parts)
        except ValueError:
            raise SourceForbidden("The source gives an address that is none.") from None
        if not is_permitted:
            raise SourceForbidden(
                f"The source leads to {parts.hostname!a} by {parts.scheme!a}: only https is used for downloads.",
                details={"host": parts.hostname, "scheme": parts.scheme},
            )
        return parts

    def _speaks(self, parts: SplitResult) -> bool:
        return parts.scheme == "https" or (parts.scheme == "http" and self._is_plain(parts))

    def _is_plain(self, parts: SplitResult) -> bool:
        return parts.netloc in self._plain_hosts or _is_loopback(parts.hostname or "")

    def _pool(self, parts: SplitResult) -> urllib3.PoolManager:
        proxy = self._proxies.get(parts.scheme)
        if proxy is None or self._is_plain(parts) or proxy_bypass(parts.hostname or ""):
            return self._direct
        return proxy


def _followed(location: Location, target: str | None) -> Location:
    """Where a redirect leads, without the credentials unless it stays where they are for."""
    before = urlsplit(location.url)
    if not target:
        raise DownloadCorrupt(f"{before.hostname} redirects to nowhere.")
    try:
        url = urljoin(location.url, target)
        after = urlsplit(url)
        has_stayed = (before.scheme, before.hostname, before.port) == (after.scheme, after.hostname, after.port)
    except ValueError:
        raise DownloadCorrupt(f"{before.hostname} redirects to what is no address.") from None
    if before.scheme == "https" and after.scheme != "https":
        raise SourceForbidden(
            f"{before.hostname} redirects from https to {after.scheme!a}: that is not followed.",
            details={"host": before.hostname, "scheme": after.scheme},
        )
    return Location(url, location.headers if has_stayed else {})


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _trusting_the_system() -> ssl.SSLContext:
    """Certificates as the system trusts them; those of certifi where it has none, as small images do."""
    paths = ssl.get_default_verify_paths()
    return ssl.create_default_context(cafile=None if paths.cafile or paths.capath else certifi.where())


@contextmanager
def _transport_errors(host: str) -> Generator[None]:
    """What can go wrong between two machines, most specific first. No address in them: it may hold a signature."""
    try:
        yield
    except SSLError as error:
        raise _unavailable(host, "does not speak TLS, or shows a certificate that is not trusted", "tls") from error
    except NameResolutionError as error:
        raise _unavailable(host, "is not known here", "name") from error
    except ConnectTimeoutError as error:
        raise _unavailable(host, "does not take connections", "connect") from error
    except ReadTimeoutError as error:
        raise _unavailable(host, "is silent", "stalled") from error
    except LocationValueError as error:
        raise SourceForbidden("The source gives an address that is none.") from error
    except (HTTPError, OSError) as error:
        raise _unavailable(host, "cannot be reached, or gives no answer", "connection") from error


def _unavailable(host: str, what: str, reason: str) -> SourceUnavailable:
    return SourceUnavailable(f"{host} {what}; try again later.", details={"host": host, "reason": reason})
