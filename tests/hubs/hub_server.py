"""What both hubs of tests are made of: a server on loopback that remembers what it was asked."""

import json
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hubs.file_server import FileServer

_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Question:
    """One request. ``path`` is decoded, ``headers`` are by their names in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def token(self) -> str | None:
        """What came as `Authorization: Bearer …`."""
        return self.headers["authorization"].removeprefix("Bearer ") if "authorization" in self.headers else None


@dataclass(frozen=True)
class Answer:
    """What is said to a request. ``cuts``: the connection ends before all of it was said."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    cuts: bool = False


def of_json(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer of JSON."""
    told = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    return Answer(status, json.dumps(content).encode(), told)


class HubServer(ABC):
    """A hub. Files' bytes come from ``storage``, another server, which answers 400 to any Authorization header.

    ``requests``: what was asked of the hub itself so far. ``then(…)``: what the next requests are answered, each in
    its turn, whatever they ask; ``instead``: what all those are answered whose path begins so. ``storage.files`` have
    faults of their own; ``storage.expire()`` ends all addresses.
    """

    def __init__(self) -> None:
        self.storage = FileServer(refuses_authorization=True)
        self.requests: list[Question] = []
        self.instead: dict[str, Answer] = {}
        self._next: deque[Answer] = deque()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_LOOK_SECONDS,), daemon=True)

    @property
    def endpoint(self) -> str:
        """Its URL, without a slash at the end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def then(self, *answers: Answer) -> None:
        """What to say to the next requests, each in its turn."""
        self._next.extend(answers)

    def asked(self, path: str) -> list[Question]:
        """The requests for what begins with this path."""
        return [question for question in list(self.requests) if question.path.startswith(path)]

    @abstractmethod
    def answer(self, question: Question) -> Answer:
        """What the hub says."""

    def say(self, question: Question) -> Answer:
        """What is said to a request that has just come."""
        self.requests.append(question)
        if self._next:
            return self._next.popleft()
        set_for = (answer for path, answer in self.instead.items() if question.path.startswith(path))
        return next(set_for, None) or self.answer(question)

    def __enter__(self) -> Self:
        self.storage.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.storage.__exit__()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is none of the tests' business."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.hub.say(Question(self.command, unquote(parts.path), query, headers))
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if answer.cuts else answer.body)
        self.close_connection = self.close_connection or answer.cuts

    do_HEAD = do_GET  # noqa: N815 - http.server's own name
