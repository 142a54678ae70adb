"""Requests through HAProxy as the edge has it: whatever a client sends, an error is the envelope."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from dreamforge.edge.configuration import REQUEST_SECONDS
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.embedded.ports import free_port
from tests.integration.door import api_state, served
from tests.integration.edge import edge_before
from tests.service import wait_for
from tests.web import web

_HOST = b"Host: localhost\r\n"
_CLOSE = b"Connection: close\r\n"
_HANDSHAKE = b"Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
_PAGE = "<html><body><h1>400 Bad request</h1>\nThis is a page of the service's own.\n</body></html>\n"
_BODY_SECONDS = 1.0
"""Instead of the half minute."""
_Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def api(database_url: str, redis_url: str, object_store: ObjectStore) -> Iterator[str]:
    """The URL of a replica."""
    state = api_state(
        database_url, redis_url, object_store.blobs(), allowed_hosts=("localhost",), body_seconds=_BODY_SECONDS
    )
    with served(state) as url:
        yield url


@pytest.fixture(scope="module")
def edge(api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the edge before that replica."""
    changes = {f"timeout http-request {REQUEST_SECONDS}s": "timeout http-request 2s"}
    with edge_before(urlsplit(api).port or 0, folder=tmp_path_factory.mktemp("h"), changes=changes) as url:
        yield url


def _spoken(url: str, *parts: bytes) -> list[_Answer]:
    """Status, headers and body of all that a connection is answered, on which these bytes are sent."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
        told = b""
        with contextlib.suppress(ConnectionResetError):
            while received := connection.recv(65536):
                told += received
    answers: list[_Answer] = []
    while told:
        head, _, rest = told.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = int(headers["content-length"])
        answers.append((int(status.split()[1]), headers, rest[:length]))
        told = rest[length:]
    return answers


def _assert_envelope(answer: _Answer, status: int, code: str) -> None:
    told, headers, body = answer
    assert told == status, body
    assert headers["content-type"] == "application/json"
    assert len(body) < 4096
    error = json.loads(body)["error"]
    assert set(error) == {"code", "message", "details", "job_id", "request_id"}
    assert error["code"] == code
    assert error["request_id"] == headers["x-request-id"] != ""


@pytest.mark.parametrize(
    ("line", "more"),
    [
        (b"GET /v1/models HTTP/1.1", b"X-A: a\x01b\r\n"),
        (b"GET /v1/models HTTP/1.1", b"X-A: a\x7fb\r\n"),
        (b"GET /v1/models HTTP/1.1", b"X\x01: a\r\n"),
        (b"GET /v1/models HTTP/1.1", b"X-A: a\rb\r\n"),
        (b"GET /v1/models", b""),
        (b"GET /v1/models HTTP/x", b""),
        (b"GET /v1/\x7f HTTP/1.1", b""),
        (b"GET v1/models HTTP/1.1", b""),
        (b"GET ?a HTTP/1.1", b""),
        (b"GET http:///v1/models HTTP/1.1", b""),
        (b"GET http://localhost?a HTTP/1.1", b""),
        (b"OPTIONS * HTTP/1.1", b""),
        (b"CONNECT localhost:80 HTTP/1.1", b""),
        (b"POST /v1/jobs HTTP/1.1", b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n"),
        (b"POST /v1/jobs HTTP/1.1", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n"),
        (b"POST /v1/jobs HTTP/1.1", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: \x01\r\n"),
    ],
)
def test_what_a_parser_refuses_is_answered_in_the_envelope(edge: str, line: bytes, more: bytes) -> None:
    (answer,) = _spoken(edge, line + b"\r\n" + _HOST + _CLOSE + more + b"\r\n")
    _assert_envelope(answer, 400, "invalid_request")


@pytest.mark.parametrize("method", [b"FOO", b"get", b"Post", b"TRACE", b"PURGE", b"OPTIONS", b"M!#$", b"X" * 100])
def test_an_unknown_method_is_told_the_right_ones(edge: str, method: bytes) -> None:
    rest = b"Content-Length: 3\r\n\r\nabc"
    (answer,) = _spoken(edge, method + b" /v1/jobs HTTP/1.1\r\n" + _HOST + _CLOSE + rest)
    _assert_envelope(answer, 405, "method_not_allowed")
    assert set(answer[1]["allow"].split(", ")) == {"GET", "POST"}
    (answer,) = _spoken(edge, method + b" /v1/nothing HTTP/1.1\r\n" + _HOST + _CLOSE + rest)
    _assert_envelope(answer, 404, "not_found")


def test_no_http_in_the_place_of_a_second_request_is_answered_in_the_envelope(edge: str) -> None:
    good = b"GET /healthz HTTP/1.1\r\n" + _HOST + b"\r\n"
    for parts in ((good, b"this is no HTTP\r\n\r\n"), (good + b"this is no HTTP\r\n\r\n",)):
        first, second = _spoken(edge, *parts)
        assert (first[0], first[2]) == (200, b'{"status":"ok"}')
        _assert_envelope(second, 400, "invalid_request")
    first, second = _spoken(edge, good + b"GET /healthz HTTP/1.1\r\n")
    assert first[0] == 200
    _assert_envelope(second, 408, "request_timeout")


@pytest.mark.parametrize(
    ("line", "more", "status"),
    [
        (b"GET /v1/models", b"Connection: Upgrade\r\n" + _HANDSHAKE, 200),
        (b"GET /v1/models", b"Connection: keep-alive, Upgrade\r\n" + _HANDSHAKE, 200),
        (b"GET /v1/models", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n", 200),
        (b"GET /v1/models", b"Connection: Upgrade\r\nUpgrade: anything\r\n", 200),
        (b"GET /v1/models", b"Connection: Upgrade\r\n", 200),
        (b"GET /v1/nothing", b"Connection: Upgrade\r\n" + _HANDSHAKE, 404),
        (b"DELETE /v1/models", b"Connection: Upgrade\r\n" + _HANDSHAKE, 405),
        (b"POST /v1/jobs", b"Connection: Upgrade\r\n" + _HANDSHAKE + b"Content-Length: 3\r\n", 415),
        (b"POST /v1/jobs", b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n", 415),
        # HAProxy wants a key in a WebSocket's handshake.
        (b"GET /v1/models", b"CONNECTION: UPGRADE\r\nUPGRADE: WebSocket\r\n", 400),
    ],
)
def test_who_asks_for_another_protocol_gets_an_ordinary_answer(
    edge: str, line: bytes, more: bytes, status: int
) -> None:
    body = b"abc" if b"Content-Length" in more else b""
    last = b"GET /healthz HTTP/1.1\r\n" + _HOST + _CLOSE + b"\r\n"
    answer, *others = _spoken(edge, line + b" HTTP/1.1\r\n" + _HOST + more + b"\r\n" + body + last)
    assert answer[0] == status
    if status >= 400:
        _assert_envelope(answer, status, json.loads(answer[2])["error"]["code"])
    # And the connection goes on as before, but where no HTTP was spoken.
    assert [other[0] for other in others] == ([200] if status != 400 else [])


@pytest.mark.parametrize(
    ("host", "status", "code"), [("localhost", 400, "invalid_request"), ("evil", 403, "forbidden")]
)
def test_a_replica_refuses_websockets_in_the_envelope(api: str, host: str, status: int, code: str) -> None:
    head = f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nX-Request-Id: mine\r\n".encode()
    (answer,) = _spoken(api, head + _HANDSHAKE + b"\r\n")
    _assert_envelope(answer, status, code)
    assert answer[1]["x-request-id"] == "mine"


@pytest.mark.parametrize("way", ["api", "edge"])
def test_a_body_that_trickles_is_not_waited_for(request: pytest.FixtureRequest, way: str) -> None:
    address = urlsplit(request.getfixturevalue(way))
    head = b"POST /v1/jobs HTTP/1.1\r\n" + _HOST + b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
    told, deadline = b"", time.monotonic() + 20
    with (
        socket.create_connection((address.hostname, address.port), timeout=0.1) as connection,
        contextlib.suppress(ConnectionError),
    ):
        connection.sendall(head + b" " * 20_000)
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                if not (received := connection.recv(65536)):
                    break
                told += received
            connection.sendall(b" ")
    assert time.monotonic() < deadline, "the connection is kept"
    assert told.startswith(b"HTTP/1.1 408 "), told
    assert b'"code":"request_timeout"' in told


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_monitor_may_ask_with_head(edge: str, path: str) -> None:
    got, head = web.get(f"{edge}{path}"), web.head(f"{edge}{path}")
    assert head.status_code == got.status_code
    assert head.headers["content-type"] == "application/json"
    assert head.headers["x-request-id"]
    assert head.content == b""


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an edge before a server that tells the headers it got, and has a page."""
    with _echo() as port, edge_before(port, folder=tmp_path_factory.mktemp("h")) as url:
        yield url


@contextlib.contextmanager
def _echo() -> Generator[int]:
    async def headers(request: Request) -> Response:
        return JSONResponse(request.headers.items())

    async def page(_: Request) -> Response:
        return HTMLResponse(_PAGE, status_code=400, headers={"Content-Type": "application/xhtml+xml"})

    app = Starlette(routes=[Route("/", headers), Route("/page", page)])
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started, what="the server")
    yield port
    server.should_exit = True
    thread.join(30)


@pytest.mark.parametrize("spelt", [str, str.upper, str.title])
def test_a_client_does_not_say_how_serve_runs_its_request(echo: str, spelt: Any) -> None:
    given = {
        spelt("x-request-timeout-seconds"): "0.001",
        spelt("x-request-disconnect-disabled"): "?1",
        spelt("x-request-timeout"): "5",
        spelt("prefer"): "wait=1",
    }
    told = dict(web.get(f"{echo}/", headers=given).json())
    assert "x-request-timeout-seconds" not in told
    assert "x-request-disconnect-disabled" not in told
    assert (told["x-request-timeout"], told["prefer"]) == ("5", "wait=1")
    assert told["x-request-id"]


def test_a_page_of_the_service_s_own_is_no_error_of_haproxy_s(echo: str) -> None:
    answer = web.get(f"{echo}/page")
    assert (answer.status_code, answer.text) == (400, _PAGE)
