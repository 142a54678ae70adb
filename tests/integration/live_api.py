"""The API in a server of its own, for tests that keep connections open, and what happens to jobs meanwhile."""

import contextlib
import json
import socket
import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import httpx2
import uvicorn
from sqlalchemy import Engine, event, text

from dreamforge.api.app import create_app
from dreamforge.api.state import ApiRules, ApiState
from dreamforge.api.tail import StreamRules
from dreamforge.blobs import Blobs
from dreamforge.embedded.ports import free_port
from dreamforge.jobs.events import Event, RunnerLog
from dreamforge.store import events
from dreamforge.store.engine import open_async_engine
from tests.service import Service, wait_for

FAST = StreamRules(poll=0.02, idle=0.1, keep_alive=15.0, stall=20.0)


class LiveApi(Service):
    """One replica, in a thread."""

    def __init__(
        self,
        *,
        database_url: str,
        redis_url: str,
        blobs: Blobs,
        streams: StreamRules = FAST,
        redis_outage: Literal["accept", "reject"] = "accept",
    ) -> None:
        rules = ApiRules(
            redis_outage=redis_outage, max_body=1024 * 1024, presign_ttl=60, heartbeat_seconds=5.0, streams=streams
        )
        engine = open_async_engine(database_url, application="tests")
        self.state = ApiState(engine=engine, blobs=blobs, redis_url=redis_url, rules=rules)
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.statements: list[str] = []
        event.listen(engine.sync_engine, "before_cursor_execute", self._count)
        config = uvicorn.Config(create_app(self.state), port=self.port, log_level="critical")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> Self:
        self._thread.start()
        wait_for(lambda: self._server.started, what="the server")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave, as a replica of Serve does: what is held first."""
        self.state.leave()
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive(), "the server does not end"

    @property
    def connections(self) -> int:
        """How many the server has."""
        return len(self._server.server_state.connections)

    def _count(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.statements.append(statement)


MakeApi = Callable[..., LiveApi]
"""A fixture that makes replicas: by the database's URL, and the rules of their streams."""


def new_job(api: LiveApi, **body: Any) -> dict[str, Any]:
    """A job that was accepted."""
    response = api.post(params={"prompt": "a fox"}, **body)
    assert response.status_code == 201, response.text
    return response.json()


def stream_of(api: LiveApi, job: dict[str, Any]) -> str:
    """The address of the job's stream."""
    return api.base_url + job["links"]["stream"]


def log_of(api: LiveApi, job: dict[str, Any]) -> str:
    """The address of the job's log, to be followed."""
    return f"{api.base_url}{job['links']['logs']}?follow=true"


class Follower:
    """A client of one stream, in a thread; what it has heard, and how its stream ended."""

    def __init__(self, url: str, **headers: str) -> None:
        self.heard: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.status = 0
        self.headers = httpx2.Headers()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(url, headers), daemon=True)
        self._thread.start()

    @property
    def seqs(self) -> list[int]:
        """The numbers of the events."""
        return [data["seq"] for data in self.heard]

    @property
    def is_done(self) -> bool:
        """True when the stream has ended or broken off."""
        return not self._thread.is_alive()

    def wait(self) -> Self:
        """Return once the stream has ended."""
        wait_for(lambda: self.is_done, what="the stream's end", instead=lambda: self.seqs)
        return self

    def _run(self, url: str, headers: dict[str, str]) -> None:
        try:
            with httpx2.Client(timeout=60) as client, client.sse(url, headers=headers) as source:
                self.status, self.headers = source.response.status_code, source.response.headers
                if self.status != 200:
                    return
                for received in source:
                    if received.data:
                        data = json.loads(received.data)
                        assert received.event == data["code"]
                        self.ids.append(received.id)
                        self.heard.append(data)
        except (httpx2.HTTPError, AssertionError, ValueError) as error:
            self.error = error


def follow(api: LiveApi, job: dict[str, Any], query: str = "", **headers: str) -> Follower:
    """A client that follows the job's stream."""
    return Follower(stream_of(api, job) + query, **headers)


@contextlib.contextmanager
def raw_stream(url: str, *, window: int | None = None, **headers: str) -> Generator[socket.socket]:
    """A connection on which a path was asked for; ``window`` is how many bytes it takes before it is read."""
    parts = urlsplit(url)
    with socket.socket() as connection:
        if window is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        connection.settimeout(60)
        connection.connect((parts.hostname, parts.port))
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        lines = [f"GET {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items())]
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        yield connection


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    """What is received up to a mark, or to the connection's end."""
    received = bytearray()
    seen = 0
    while received.find(mark, max(0, seen - len(mark))) < 0:
        seen = len(received)
        if not (chunk := connection.recv(1 << 20)):
            break
        received += chunk
    return bytes(received)


def happen(engine: Engine, job_id: uuid.UUID | str, *, count: int = 1, what: Event | None = None) -> None:
    """Write events, each in its own transaction."""
    for number in range(count):
        with engine.begin() as connection:
            said = what or RunnerLog(message=f"number {number}")
            connection.execute(*events.append(said, job_id=uuid.UUID(str(job_id))))


def end_abruptly(engine: Engine, job_id: uuid.UUID | str, *, status: str = "failed", code: str = "job.failed") -> None:
    """Give the job a terminal status and its event, in one transaction."""
    set_status(engine, job_id, status, code)


def retry(engine: Engine, job_id: uuid.UUID | str) -> None:
    """Queue the job again, as a person's retry does."""
    set_status(engine, job_id, "queued", "job.queued")


def set_status(engine: Engine, job_id: uuid.UUID | str, status: str, code: str) -> None:
    """A status and an event that tells of it."""
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE jobs SET status = :status WHERE id = :id"), {"status": status, "id": str(job_id)}
        )
        statement, values = events.append(RunnerLog(message=""), job_id=uuid.UUID(str(job_id)))
        connection.execute(statement, {**values, "code": code, "payload": {}})


def data_of(received: bytes) -> Iterator[dict[str, Any]]:
    """The `data` objects in a piece of a stream."""
    for line in received.splitlines():
        if line.startswith(b"data: "):
            yield json.loads(line[6:])
