"""Both clients on streams that are cut off, over a real server and Postgres."""

import contextlib
import http.server
import random
import socket
import threading
import time
from typing import Any

import pytest
from sqlalchemy import Engine

from dreamforge.client import ApiError, Client, UnexpectedAnswer
from tests.integration.live_api import LiveApi, end_abruptly, happen
from tests.integration.test_client import _Awaited as Awaited  # pyright: ignore[reportPrivateUsage] - a test's own
from tests.relay import Relay
from tests.service import wait_for

pytestmark = pytest.mark.timeout(200)

_CUTS = 20


def _client(kind: str, url: str) -> Any:
    return Client(url) if kind == "blocking" else Awaited(url)


def _close(client: Any) -> None:
    client.close() if isinstance(client, Client) else client.end()


def _follow(client: Any, job_id: object, followed: list[Any]) -> None:
    """Have each of the job's events in ``followed`` as soon as it comes."""
    if isinstance(client, Client):
        # One by one: others look at the list meanwhile.
        for event in client.stream(str(job_id)):
            followed.append(event)
        return

    async def listen() -> None:
        async for event in client._client.stream(job_id):
            followed.append(event)

    client._one(listen())


def _unfold_until(engine: Engine, job_id: object, *, enough: threading.Event) -> threading.Thread:
    """A job that gets on until it is ``enough``, and ends."""

    def write() -> None:
        while not enough.wait(0.01):
            happen(engine, str(job_id))
        end_abruptly(engine, str(job_id))

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def _unfold(engine: Engine, job_id: object, *, pauses: list[float]) -> threading.Thread:
    """A job that gets on, and ends."""

    def write() -> None:
        for pause in pauses:
            time.sleep(pause)
            happen(engine, str(job_id))
        end_abruptly(engine, str(job_id))

    thread = threading.Thread(target=write)
    thread.start()
    return thread


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_a_stream_that_is_cut_off_again_and_again_has_every_event_once(api: LiveApi, engine: Engine, kind: str) -> None:
    followed: list[Any] = []
    enough = threading.Event()
    with Relay(target=("127.0.0.1", api.port)) as relay:
        client = _client(kind, f"http://127.0.0.1:{relay.port}")
        job = client.submit("a fox")
        writer = _unfold_until(engine, job.id, enough=enough)
        reader = threading.Thread(target=_follow, args=(client, job.id, followed))
        reader.start()
        try:
            for _ in range(_CUTS):
                wait_for(lambda: relay.connections == 1, what="a connection")
                heard = len(followed)
                wait_for(lambda heard=heard: len(followed) > heard, what="an event on it")
                # Anywhere between two events, or in the middle of one.
                time.sleep(random.uniform(0, 0.1))  # noqa: S311 - no secret
                with relay.refusing():
                    pass
                wait_for(lambda: not relay.connections, what="the connection's end")
            assert relay.cut_off == _CUTS
        finally:
            enough.set()
            writer.join()
        reader.join(100)
        assert not reader.is_alive()
        _close(client)
    lines = api.get(f"/v1/jobs/{job.id}/logs").text.splitlines()
    assert [event.seq for event in followed] == list(range(1, len(lines) + 1))
    assert followed[-1].code == "job.failed"


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_progress_is_told(api: LiveApi, kind: str) -> None:
    client = _client(kind, api.base_url)
    job = client.submit("a fox", count=2)
    progress = client.progress(job.id)
    assert (progress.job_id, progress.status, progress.last_seq, progress.eta_seconds) == (job.id, "queued", 1, None)
    assert [(item.item_index, item.status, item.fraction) for item in progress.items] == [
        (0, "pending", 0.0), (1, "pending", 0.0),
    ]  # fmt: skip
    _close(client)


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_a_followed_log_is_filtered(api: LiveApi, engine: Engine, kind: str) -> None:
    client = _client(kind, api.base_url)
    job = client.submit("a fox")
    writer = _unfold(engine, job.id, pauses=[0.01] * 3)
    assert [line.seq for line in client.logs(job.id, after=1, codes=["log"], follow=True)] == [2, 3, 4]
    assert [line.code for line in client.logs(job.id, codes=["job.failed"], follow=True)] == ["job.failed"]
    assert [line.seq for line in client.logs(job.id, codes=["log"])] == [2, 3, 4]
    writer.join()
    with pytest.raises(ApiError) as caught:
        list(client.stream(job.id, after=99))
    assert caught.value.status == 400
    _close(client)


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_who_stops_listening_has_hung_up(api: LiveApi, kind: str) -> None:
    client = _client(kind, api.base_url)
    job = client.submit("a fox")
    if isinstance(client, Client):
        events = iter(client.stream(job.id))
        assert next(events).seq == 1
        events.close()  # type: ignore[attr-defined] - a generator
    else:

        async def first() -> int:
            events = client._client.stream(job.id)
            seq = (await anext(events)).seq
            await events.aclose()
            return seq

        assert client._one(first()) == 1
    wait_for(lambda: api.state.tail.readers == 0, seconds=5, what="its leaving")
    _close(client)


@pytest.mark.parametrize("kind", ["blocking", "async"])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_streams_are_read_as_the_standard_has_them(kind: str, line_end: bytes) -> None:
    """Comments, ids with NUL, unknown fields, data on several lines, torn characters, a last event that is torn."""
    line = (
        '{"ts": "2026-03-01T12:00:00Z", "code": "log", "job_id": "00000000-0000-0000-0000-000000000007",'
        '\ndata: "step_id": null, "attempt": null, "level": "info", "payload": {"message": "für"},'
        '\ndata:"progress": {"fraction": 0, "items_done": 0, "items_total": 1}, "seq": %d}\n\n'
    )
    body = ": a comment\nretry: 1\n\nid: 1\nid: 7\0\nevent: log\nfield: x\n:\ndata: " + line % 1
    body += "data: " + line % 2 + "data: " + (line % 3)[:-2]
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []

    def serve() -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n"
        for answer in (head, b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"):
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(65536))
                connection.sendall(answer)
                if answer is head:
                    for byte in body.encode().replace(b"\n", line_end):
                        connection.sendall(bytes([byte]))

    thread = threading.Thread(target=serve)
    thread.start()
    client = _client(kind, f"http://127.0.0.1:{listener.getsockname()[1]}")
    events = list(client.stream("7"))
    thread.join()
    listener.close()
    _close(client)
    assert [(event.seq, event.payload) for event in events] == [(1, {"message": "für"}), (2, {"message": "für"})]
    assert b"Last-Event-ID: 2" in asked[1]


@pytest.mark.parametrize("kind", ["blocking", "async"])
@pytest.mark.parametrize("content_type", ["text/html", "text/event-stream"], ids=["a page", "no end of an event"])
def test_another_program_s_answer_is_not_listened_to_for_ever(kind: str, content_type: str) -> None:
    """Neither the page of a wrong address, nor what calls itself a stream and is none."""

    class Another(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(64):
                    self.wfile.write(b"x" * (1 << 20))

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    asked: list[str] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Another) as server:
        threading.Thread(target=server.serve_forever).start()
        client = _client(kind, f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(UnexpectedAnswer):
            list(client.stream("7"))
        _close(client)
        server.shutdown()
    assert len(asked) == 1
