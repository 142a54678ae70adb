"""What nobody should send, over HTTP to the whole service: no 5xx, one envelope, and others do not notice."""

import contextlib
import json
import select
import socket
import time

import httpx2
import pytest

from tests.running_stack import RunningStack

pytestmark = pytest.mark.timeout(300)

_MIB = 1024 * 1024
_SLOW_CLIENTS = 200


def _asked(stack: RunningStack, method: str, path: str, **request: object) -> httpx2.Response:
    return stack.ask(method, path, timeout=60, **request)


def _assert_envelope(response: httpx2.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert len(response.content) < 4096
    error = response.json()["error"]
    assert set(response.json()) == {"error"}
    assert error["code"] == code
    assert response.headers.get_list("X-Request-Id") == [error["request_id"]]


@pytest.mark.parametrize(
    ("content", "media_type", "status", "code"),
    [
        (b"", "application/json", 422, "invalid_request"),
        (b"{", "application/json", 400, "invalid_request"),
        (b'{"a": "\xff"}', "application/json", 400, "invalid_request"),
        (b'{"type": "generate", "type": "generate"}', "application/json", 400, "invalid_request"),
        (b'{"params": {"guidance_scale": NaN}}', "application/json", 400, "invalid_request"),
        (b'{"params": {"guidance_scale": Infinity}}', "application/json", 400, "invalid_request"),
        (b'{"params": {"guidance_scale": 1e999}}', "application/json", 422, "invalid_request"),
        (b'{"count": ' + b"9" * 5000 + b"}", "application/json", 400, "invalid_request"),
        (b"[" * 900 + b"]" * 900, "application/json", 422, "invalid_request"),
        (b"[" * 100_000 + b"]" * 100_000, "application/json", 400, "invalid_request"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b'"' + b"x" * 2 * _MIB + b'"', "application/json", 413, "body_too_large"),
    ],
    ids=["empty", "torn", "utf-8", "twice", "nan", "infinity", "1e999", "digits", "900", "100000", "text", "2 MiB"],
)
def test_bodies_that_are_no_request(
    stack: RunningStack, content: bytes, media_type: str, status: int, code: str
) -> None:
    response = _asked(stack, "POST", "/v1/jobs", content=content, headers={"Content-Type": media_type})
    _assert_envelope(response, status, code)


@pytest.mark.parametrize(
    "change",
    [
        {"count": 0},
        {"count": 101},
        {"count": True},
        {"count": 1.0},
        {"count": 2**63},
        {"params": {"prompt": "x", "seed": -1}},
        {"params": {"prompt": "x", "seed": 2**32}},
        {"params": {"prompt": "x", "width": 7}},
        {"params": {"prompt": "nul \x00"}},
        {"params": {"prompt": "\ud800"}},
        {"metadata": {"a": {"b": "nul \x00"}}},
    ],
    ids=repr,
)
def test_values_that_do_not_fit(stack: RunningStack, change: dict[str, object]) -> None:
    body = json.dumps({"type": "generate", "params": {"prompt": "x"}, **change})
    response = _asked(stack, "POST", "/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    _assert_envelope(response, 422, "invalid_request")
    assert response.json()["error"]["details"]["errors"][0]["path"].startswith(next(iter(change)))


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/jobs?cursor=banana", 400, "invalid_request"),
        ("GET", "/v1/jobs?limit=0", 422, "invalid_request"),
        ("GET", "/v1/jobs/17", 404, "not_found"),
        ("GET", "/v1/jobs/%00", 404, "not_found"),
        ("GET", "/v1/jobs/%ff/logs", 404, "not_found"),
        ("GET", "/v1/models/%00", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("PUT", "/v1/jobs", 405, "method_not_allowed"),
    ],
)
def test_addresses_that_lead_nowhere(stack: RunningStack, method: str, path: str, status: int, code: str) -> None:
    response = _asked(stack, method, path)
    _assert_envelope(response, status, code)
    assert status != 405 or set(response.headers["Allow"].split(", ")) >= {"GET", "POST"}


def test_a_page_that_rebinds_its_name_is_refused(stack: RunningStack) -> None:
    _assert_envelope(_asked(stack, "GET", "/v1/models", headers={"Host": "evil.example.net"}), 403, "forbidden")
    for known in (f"localhost:{stack.ports['PORT']}", socket.gethostname(), "192.0.2.7"):
        assert _asked(stack, "GET", "/v1/models", headers={"Host": known}).status_code == 200


def test_a_chunked_body_without_end_is_cut(stack: RunningStack) -> None:
    told, sent = b"", 0
    with socket.create_connection(("127.0.0.1", stack.ports["PORT"]), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            while sent < 256 * _MIB:
                connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
                sent += 0x10000
                while select.select([connection], [], [], 0)[0] and (part := connection.recv(65536)):
                    told += part
        # What came before the connection was cut is still to be read.
        with contextlib.suppress(OSError):
            while part := connection.recv(65536):
                told += part
    assert told.startswith(b"HTTP/1.1 413 "), (told, sent)
    assert b'"body_too_large"' in told
    assert len(told) < 4096
    assert sent < 256 * _MIB, "the connection is cut"


def test_slow_clients_hold_nobody_up(stack: RunningStack) -> None:
    head = (
        b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b'Content-Length: 4096\r\n\r\n{"type": "generate", "params": {"prompt": "'
    )
    with contextlib.ExitStack() as open_:
        slow = [
            open_.enter_context(socket.create_connection(("127.0.0.1", stack.ports["PORT"]), timeout=60))
            for _ in range(_SLOW_CLIENTS)
        ]
        for connection in slow:
            connection.sendall(head)
        for _ in range(10):
            began = time.monotonic()
            assert stack.get("/v1/models").status_code == 200
            assert time.monotonic() - began < 10
            for connection in slow:
                with contextlib.suppress(OSError):
                    connection.sendall(b"x")
        answers = [_answer(connection) for connection in slow]
    assert {answer.split(b" ", 2)[1] for answer in answers} == {b"408"}
    assert all(b'"code":"request_timeout"' in answer and len(answer) < 4096 for answer in answers)


def _answer(connection: socket.socket) -> bytes:
    told = b""
    with contextlib.suppress(OSError):
        while part := connection.recv(65536):
            told += part
    return told


def test_every_replica_tells_the_same_figures(stack: RunningStack) -> None:
    told = [stack.get("/metrics") for _ in range(6)]
    assert {response.status_code for response in told} == {200}
    assert all("dreamforge_database_up 1.0" in response.text for response in told)
    assert all('dreamforge_dispatcher_slots{node="' in response.text for response in told)


def test_who_has_the_models_already_is_told_so_through_the_edge(stack: RunningStack) -> None:
    tag = stack.get("/v1/models").headers["ETag"]
    again = _asked(stack, "GET", "/v1/models", headers={"If-None-Match": f"W/{tag}"})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)


def test_the_documentation_comes_from_here(stack: RunningStack) -> None:
    assert "https://" not in stack.get("/docs").text
    assert len(stack.get("/docs/assets/swagger-ui-bundle.js").content) > _MIB
