"""What an answer to a request for a part of a file means: decided from its headers, before a byte of it is kept."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from pathlib import PurePosixPath

import urllib3
from urllib3.exceptions import InvalidHeader

from dreamforge.errors import (
    DownloadCorrupt,
    SourceError,
    SourceForbidden,
    SourceNotFound,
    SourceUnavailable,
)
from dreamforge.models.remote import RemoteFile

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_PAGES = frozenset({"text/html", "application/xhtml+xml"})
_JSON = frozenset({"application/json", "application/problem+json", "text/json"})
_BUSY = frozenset({408, 425, 429})
_SURE_AFTER_SECONDS = 60.0
"""A date says which version it is once it is as old: see RFC 9110, section 8.8.2.2."""


class Meaning(Enum):
    """What is to be done with an answer."""

    PART = auto()
    """These are the bytes that were asked for."""
    WHOLE = auto()
    """This is the file from its beginning, whatever was asked for."""
    CHANGED = auto()
    """Another file is there now: what was begun is worth nothing."""
    REFUSED = auto()
    """The address has expired, or nobody is to have it."""


@dataclass(frozen=True)
class Mark:
    """What tells a version of a file from others: see RFC 9110, section 8.8."""

    etag: str | None = None
    last_modified: str | None = None

    def condition(self) -> str | None:
        """What If-Range may carry; None for what is not sure."""
        return self.etag or self.last_modified

    def is_other(self, mark: "Mark") -> bool:
        """True for two that both are known and differ."""
        if self.etag and mark.etag:
            return self.etag != mark.etag
        return bool(self.last_modified and mark.last_modified) and self.last_modified != mark.last_modified


@dataclass(frozen=True)
class Known:
    """What is known of a file before the answer: its size, and the mark of what was begun, if it is to be heeded."""

    size: int | None
    mark: Mark


@dataclass(frozen=True)
class Head:
    """The head of an answer, understood. ``size``: of the whole file; ``length``: of what comes now."""

    meaning: Meaning
    size: int | None = None
    length: int | None = None
    mark: Mark = Mark()


def understand(
    status: int, headers: Mapping[str, str], *, host: str, file: RemoteFile, begin: int, end: int, known: Known
) -> Head:
    """What an answer means to whoever asked for the bytes from ``begin`` to before ``end``.

    Raises ``SourceUnavailable`` and ``DownloadCorrupt`` for what may be better next time.
    """
    if status in {200, 206}:
        _require_plain(headers, host)
        if _page(headers, file):
            return Head(Meaning.REFUSED)
        mark = mark_of(headers)
        is_part = status == 206 or _is_part_all_the_same(headers)
        head = _part(headers, host, begin, end, mark) if is_part else _whole(headers, mark)
        return _compared(head, host=host, file=file, known=known)
    if status in {412, 416}:
        size = re.fullmatch(r"bytes \*/(\d{1,18})", headers.get("Content-Range", ""))
        return Head(Meaning.CHANGED, size=int(size[1]) if size else None)
    if status in _BUSY or status >= 500:
        raise _busy(status, headers, host)
    if 400 <= status < 500:
        return Head(Meaning.REFUSED)
    raise DownloadCorrupt(f"{host} answers with status {status} in place of {file.path}.", details={"status": status})


def refusal(status: int, headers: Mapping[str, str], *, host: str, file: RemoteFile) -> SourceError:
    """What is to be said of an answer that refuses, once a fresh address has been refused too."""
    told = _told(headers)
    details = {"host": host, "status": status, "file": file.path}
    if status < 300:
        return SourceForbidden(
            f"{host} answers with a page ({_page(headers, file)}) in place of {file.path}: it may want a token, or one "
            "with more rights.",
            details={**details, "reason": "page"},
        )
    if status in {404, 410}:
        return SourceNotFound(f"{host} does not have {file.path} (status {status}){told}.", details=details)
    return SourceForbidden(
        f"{host} gives {file.path} to nobody without a token, or not to this one (status {status}){told}.",
        details=details,
    )


def mark_of(headers: Mapping[str, str]) -> Mark:
    """The strong validators of an answer."""
    etag, date = headers.get("ETag"), headers.get("Last-Modified")
    # An empty one is the same for every file: `rclone serve s3` sends it where it makes none.
    is_strong = etag is not None and etag.startswith('"') and etag != '""'
    return Mark(etag=etag if is_strong else None, last_modified=date if _is_sure(date, headers.get("Date")) else None)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, in Retry-After (RFC 9110, section 10.2.3), or in RateLimit as Hugging Face sends it."""
    text = headers.get("Retry-After")
    if text is None:
        reset = re.search(r"\bt=(\d{1,6})\b", headers.get("RateLimit", ""))
        return float(reset[1]) if reset else None
    try:
        return urllib3.Retry().parse_retry_after(text)
    except (InvalidHeader, ValueError, OverflowError):
        return None


def _part(headers: Mapping[str, str], host: str, begin: int, end: int, mark: Mark) -> Head:
    found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if not found:
        raise _wrong(host, "a part of a file and does not say which")
    first, last = int(found[1]), int(found[2])
    size = None if found[3] == "*" else int(found[3])
    length = _length(headers)
    if first != begin or last < first or last >= end or (size is not None and last >= size):
        raise _wrong(host, "another part of the file than it was asked for")
    if length not in {None, last - first + 1}:
        raise _wrong(host, "another length than the part has")
    return Head(Meaning.PART, size=size, length=last - first + 1, mark=mark)


def _is_part_all_the_same(headers: Mapping[str, str]) -> bool:
    """True for a part that comes with status 200: `rclone serve s3` does that (gofakes3, its library).

    Its Content-Range tells what it is, and so does its length, of the part and not of the file.
    """
    found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if not found or found[3] == "*":
        return False
    count = int(found[2]) - int(found[1]) + 1
    return _length(headers) == count != int(found[3])


def _whole(headers: Mapping[str, str], mark: Mark) -> Head:
    length = _length(headers)
    return Head(Meaning.WHOLE, size=length, length=length, mark=mark)


def _compared(head: Head, *, host: str, file: RemoteFile, known: Known) -> Head:
    """The same unless it is the head of another file than the one that was told of, or begun."""
    if file.size is not None and head.size not in {None, file.size}:
        raise DownloadCorrupt(
            f"{host} has {file.path} with {head.size:,} bytes, and its source said {file.size:,}.",
            details={"file": file.path, "size": head.size, "expected": file.size},
        )
    is_other = known.mark.is_other(head.mark) or (None not in {known.size, head.size} and known.size != head.size)
    if is_other and head.meaning is Meaning.PART:
        return Head(Meaning.CHANGED)
    return head


def _require_plain(headers: Mapping[str, str], host: str) -> None:
    packing = headers.get("Content-Encoding", "identity").strip().lower()
    if packing not in {"", "identity"}:
        raise _wrong(host, f"a packed file ({packing[:20]!a}), which was not asked for")


def _page(headers: Mapping[str, str], file: RemoteFile) -> str | None:
    """What kind of page this is, where it is one and no file of a model: a login, or an error."""
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    is_page = kind in _PAGES or (kind in _JSON and PurePosixPath(file.path).suffix != ".json")
    return kind if is_page else None


def _busy(status: int, headers: Mapping[str, str], host: str) -> SourceUnavailable:
    seconds = retry_after(headers)
    when = "later" if seconds is None else f"in {seconds:.0f} seconds"
    what = "is asked too often" if status == 429 else "answers with an error"
    return SourceUnavailable(
        f"{host} {what} (status {status}); try again {when}.",
        details={"host": host, "status": status} | ({} if seconds is None else {"retry_after": seconds}),
    )


def _told(headers: Mapping[str, str]) -> str:
    """What Hugging Face says in words, as far as it can be printed."""
    words = "".join(letter for letter in headers.get("X-Error-Message", "")[:200] if letter.isprintable())
    return f": {words.rstrip('.')}" if words else ""


def _wrong(host: str, what: str) -> DownloadCorrupt:
    return DownloadCorrupt(f"{host} sends {what}.", details={"host": host})


def _length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if re.fullmatch(r"\d{1,18}", text) else None


def _is_sure(date: str | None, now: str | None) -> bool:
    if date is None or now is None:
        return False
    try:
        return (parsedate_to_datetime(now) - parsedate_to_datetime(date)).total_seconds() >= _SURE_AFTER_SECONDS
    except (ValueError, TypeError, OverflowError):
        return False
