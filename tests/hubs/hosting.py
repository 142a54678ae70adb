"""Files as a server of tests has them, and what may go wrong with a request for one."""

import contextlib
import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request. All counts are of bytes of this answer's body.

    ``status``: this instead of the file, with ``headers`` and ``body``. ``headers`` are added to any answer.
    ``cut_after``: the connection ends there, by a reset when ``resets``. ``silent_after``: nothing more comes, and the
    connection stays. ``holds_answer``: the answer does not even begin. ``endless_head``: its head never ends. ``drip``:
    seconds between two ``drip_bytes``. ``ignores_range``: 200 and the whole file. ``says_200``: the part, with that
    status, as rclone. ``range_shift``: the bytes of another place, and Content-Range says so. ``adds_to_length``: a
    Content-Length that is more, or less, than what comes. ``has_no_length``: none, chunked. ``gzips``: whatever was
    asked for. ``flips``: the byte at this place of the file is another.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    cut_after: int | None = None
    resets: bool = False
    silent_after: int | None = None
    holds_answer: bool = False
    endless_head: bool = False
    drip: float = 0.0
    drip_bytes: int = 1024
    ignores_range: bool = False
    says_200: bool = False
    range_shift: int = 0
    adds_to_length: int = 0
    has_no_length: bool = False
    gzips: bool = False
    flips: int | None = None


NO_FAULT = Fault()
LOGIN_PAGE = Fault(status=200, headers={"Content-Type": "text/html; charset=utf-8"}, body=b"<html>Log in</html>")


def redirect(url: str, status: int = 302) -> Fault:
    """An answer that sends elsewhere."""
    return Fault(status=status, headers={"Location": url})


@dataclass(frozen=True)
class Asked:
    """One request that came, ``status`` being what it was answered and ``sent`` the bytes of the body that left."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    status: int
    sent: int


class HostedFile:
    """One file. ``body``: its bytes, or a file on the disk. ``fault``: what is wrong with every request."""

    def __init__(self, path: str, body: bytes | Path, *, locate: Callable[[str], str], asked: Sequence[Asked]) -> None:
        self.path = path
        self.body = body
        self.fault = NO_FAULT
        self.content_type = "application/octet-stream"
        self.etag: str | None = f'"{hashlib.sha1(self._mark()).hexdigest()}"'  # noqa: S324 - a mark, no secret
        self.last_modified: float | None = 1_700_000_000.0
        self._locate = locate
        self._asked = asked
        self._next: deque[Fault] = deque()

    @property
    def url(self) -> str:
        """Where it is now; see ``FileServer.expire``."""
        return self._locate(self.path)

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self.body) if isinstance(self.body, bytes) else self.body.stat().st_size

    @property
    def sha256(self) -> str:
        """Of its bytes, in hex."""
        data = self.body if isinstance(self.body, bytes) else self.body.read_bytes()
        return hashlib.sha256(data).hexdigest()

    @property
    def git_sha1(self) -> str:
        """What git knows it by: see gitformat-pack(5) and `git hash-object`."""
        data = self.body if isinstance(self.body, bytes) else self.body.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 - git's own

    def then(self, *faults: Fault) -> None:
        """What goes wrong with the next requests, each in its turn, before ``fault`` is for all others."""
        self._next.extend(faults)

    def change(self, body: bytes) -> None:
        """Another file takes its place, with another ETag and a later date."""
        self.body = body
        self.etag = f'"{hashlib.sha1(self._mark()).hexdigest()}"'  # noqa: S324 - as above
        self.last_modified = (self.last_modified or 0) + 1000

    @property
    def requests(self) -> list[Asked]:
        """What was asked for it so far."""
        return [asked for asked in list(self._asked) if asked.path == self.path]

    @property
    def bytes_sent(self) -> int:
        """All bytes of it that have left so far."""
        return sum(asked.sent for asked in self.requests)

    def next_fault(self) -> Fault:
        """What is wrong with the request that has just come."""
        with contextlib.suppress(IndexError):
            return self._next.popleft()
        return self.fault

    def cut(self, begin: int, end: int) -> bytes:
        """Its bytes from ``begin`` to before ``end``."""
        if isinstance(self.body, bytes):
            return self.body[begin:end]
        with self.body.open("rb") as file:
            file.seek(begin)
            return file.read(end - begin)

    def _mark(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else str(self.body.stat().st_mtime_ns).encode()
