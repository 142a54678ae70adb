"""Questions to Civitai over HTTP, and what its refusals mean."""

import json
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import httpx2

from dreamforge import __version__
from dreamforge.errors import SourceError, SourceForbidden, SourceNotFound, SourceUnavailable
from dreamforge.models.sources.attempts import in_time, retry_after
from dreamforge.models.sources.civitai_answers import File, Version

_SECONDS = 30.0
_LONGEST_ANSWER = 60.0
_LARGEST_ANSWER = 32 * 1024 * 1024
# The usual ones of Python's libraries are answered 403.
_AGENT = {"User-Agent": f"dreamforge/{__version__}"}
_PAGES = ("text/html", "application/json", "text/plain")
# Where who may not have a file is sent: src/utils/login-helpers.ts and join-helpers.ts of civitai/civitai.
_TURNED_AWAY = ("/login", "/pricing", "/subscription", "/purchase")
_NEW_TOKEN = "make an API key in your account's settings on civitai.com and set DREAMFORGE_CIVITAI_TOKEN to it"  # noqa: S105 - words


def _today() -> date:
    return datetime.now(UTC).date()


class CivitaiApi:
    """The API at ``endpoint``. ``token`` is sent there alone: no redirect is followed with it."""

    def __init__(
        self,
        *,
        endpoint: str,
        token: str | None,
        today: Callable[[], date] = _today,
        longest: float = _LONGEST_ANSWER + _SECONDS,
    ) -> None:
        self._endpoint = endpoint
        self._token = token
        self._today = today
        self._longest = longest

    def headers(self) -> dict[str, str]:
        """For every request. To say that it is of JSON has it refused in JSON, not by a page to log in."""
        told = {"Content-Type": "application/json"}
        return {**told, "Authorization": f"Bearer {self._token}"} if self._token else told

    def get(self, path: str) -> dict[str, Any]:
        """The object at a path of the API. Raises ``SourceError``."""
        answer = self._ask(f"{self._endpoint}{path}")
        if answer.status_code == HTTPStatus.NOT_FOUND:
            page = path.removeprefix("/api/v1/").replace("model-versions/", "version ").replace("models/", "model ")
            raise SourceNotFound(f"Civitai has no {page}, or does not show it: it may be unpublished or restricted.")
        if answer.status_code != HTTPStatus.OK:
            raise self._refusal(answer, "that model")
        try:
            said = json.loads(answer.content)
        except (ValueError, RecursionError) as error:
            raise _unanswered("answers with something else than JSON") from error
        if not isinstance(said, dict):
            raise _unanswered("answers with something else than a model")
        return said

    def working_address(self, version: Version, file: File) -> str:
        """The address that the file can be had at, without having it. Raises ``SourceError`` when there is none.

        A request for one byte, which is not sent on: a HEAD would be answered 401.
        """
        plain = f"{self._endpoint}/api/download/models/{version.id}"
        by_number = f"{plain}?fileId={file.id}"
        # The token goes along, so to this host alone.
        own = file.address if file.address and _origin(file.address) == _origin(plain) else None
        for address in dict.fromkeys(filter(None, (own, by_number))):
            answer = self._ask(address, {"Range": "bytes=0-0"})
            if answer.status_code != HTTPStatus.NOT_FOUND:
                self._check_given(answer, version)
                return address
        raise SourceNotFound(f"Civitai describes {file.name[:80]!a} of {version.title}, but does not have it.")

    def _check_given(self, answer: httpx2.Response, version: Version) -> None:
        if answer.is_redirect:
            # To a page of the site itself, in place of storage.
            target = _path(str(answer.headers.get("location", "")))
            if target.startswith(_TURNED_AWAY) or not target:
                raise self._forbidden(version.title, version.early_access_ends)
            return
        if not answer.is_success:
            raise self._refusal(answer, version.title, version.early_access_ends)
        if answer.headers.get("content-type", "").startswith(_PAGES):
            raise self._forbidden(version.title, version.early_access_ends)

    def _ask(self, url: str, more: dict[str, str] | None = None) -> httpx2.Response:
        """One answer, of a bounded size and in a bounded time, from this very address."""
        late = _unanswered("takes too long to answer")
        return in_time(lambda: self._ask_at_leisure(url, more), seconds=self._longest, late=lambda: late)

    def _ask_at_leisure(self, url: str, more: dict[str, str] | None) -> httpx2.Response:
        try:
            with (
                httpx2.Client(timeout=_SECONDS, follow_redirects=False) as client,
                client.stream("GET", url, headers={**self.headers(), **_AGENT, **(more or {})}) as answer,
            ):
                # A file's own bytes are of no interest here, a description's are.
                body = b"" if more else _bounded(answer)
                return httpx2.Response(answer.status_code, headers=_plain(answer.headers), content=body)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise _unanswered(f"does not answer at {self._endpoint} ({type(error).__name__})") from error

    def _refusal(self, answer: httpx2.Response, title: str, early_access_ends: str = "") -> SourceError:
        match answer.status_code:
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                return self._forbidden(title, early_access_ends)
            case HTTPStatus.TOO_MANY_REQUESTS:
                wait = retry_after(answer.headers)
                when = f"in {wait['retry_after']:.0f} seconds" if wait else "later"
                return SourceUnavailable(
                    f"Civitai has had too many requests from here. Try again {when}.", details=wait
                )
            case status if answer.is_redirect:
                words = "sends elsewhere, where a token does not follow. Look at DREAMFORGE_CIVITAI_ENDPOINT"
                return SourceUnavailable(f"Civitai {words} ({status}).")
            case status:
                words = f"Civitai answers with an error, {status}. Try again later."
                return SourceUnavailable(words, details=retry_after(answer.headers))

    def _forbidden(self, title: str, early_access_ends: str) -> SourceForbidden:
        is_early = early_access_ends >= self._today().isoformat()
        early = f" It is in early access until {early_access_ends}: buy it there, or wait." if is_early else ""
        if self._token is None:
            return SourceForbidden(f"Civitai gives {title} to nobody without a token: {_NEW_TOKEN}.{early}")
        account = "the account that DREAMFORGE_CIVITAI_TOKEN is of"
        advice = early or f" If the token is old, {_NEW_TOKEN}."
        return SourceForbidden(f"Civitai does not give {title} to {account}.{advice}")


def _bounded(answer: httpx2.Response) -> bytes:
    body, deadline = bytearray(), time.monotonic() + _LONGEST_ANSWER
    for piece in answer.iter_bytes():
        body += piece
        if len(body) > _LARGEST_ANSWER or time.monotonic() > deadline:
            raise _unanswered("answers with far too much, or far too slowly")
    return bytes(body)


def _plain(headers: httpx2.Headers) -> dict[str, str]:
    """Without what says how the body was packed: it no longer is."""
    return {name: value for name, value in headers.items() if name not in ("content-encoding", "content-length")}


def _origin(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        # The hub writes what it likes.
        return "", ""
    return parts.scheme, parts.netloc


def _path(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


def _unanswered(words: str) -> SourceUnavailable:
    return SourceUnavailable(f"Civitai {words}. Try again later.")
