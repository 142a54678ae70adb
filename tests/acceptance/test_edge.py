"""What clients meet first: HAProxy with our rules, in front of the replicas."""

import contextlib
import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import psutil
import pytest

from tests.running_stack import RunningStack, command_of, wait_for
from tests.web import web

pytestmark = pytest.mark.timeout(300)

_PATIENCE = 40.0


def _spoken(stack: RunningStack, request: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON body that raw bytes are answered with."""
    with socket.create_connection(("127.0.0.1", stack.ports["PORT"]), timeout=_PATIENCE) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(status.split()[1]), headers, json.loads(body)


def _assert_envelope(status: int, headers: dict[str, str], body: Any, *, code: str) -> None:
    assert headers["content-type"] == "application/json"
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "details", "job_id", "request_id"}
    assert body["error"]["code"] == code
    assert body["error"]["request_id"] == headers["x-request-id"]
    assert len(headers["x-request-id"]) >= 16
    assert len(json.dumps(body)) < 4096
    assert status >= 400


@pytest.mark.parametrize(
    "request_",
    [
        b"this is no HTTP\r\n\r\n",
        b"GET /healthz\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Huge: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Control: \x01\r\n\r\n",
    ],
    ids=["no HTTP", "NUL", "huge header", "huge path", "negative length", "two lengths", "no chunk", "control"],
)
def test_what_is_no_http_is_answered_in_the_envelope(stack: RunningStack, request_: bytes) -> None:
    status, headers, body = _spoken(stack, request_)
    assert status == 400
    _assert_envelope(status, headers, body, code="invalid_request")


def test_slow_clients_are_told_and_let_go(stack: RunningStack) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    body = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"

    def spoken(request: bytes, pause: float) -> tuple[float, int, dict[str, str], Any]:
        time.sleep(pause)
        began = time.monotonic()
        answer = _spoken(stack, request)
        return time.monotonic() - began, *answer

    # At every tenth of a second, whole seconds being what clocks tell at once.
    clients = [(request, phase / 10) for request in (head, body) for phase in range(10)]
    with ThreadPoolExecutor(len(clients)) as pool:
        answers = list(pool.map(spoken, *zip(*clients, strict=True)))
    for seconds, status, headers, told in answers:
        assert 5 < seconds < 30
        assert status == 408
        _assert_envelope(status, headers, told, code="request_timeout")


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        (b"FOO /v1/jobs", 405, "method_not_allowed"),
        (b"get /v1/jobs", 405, "method_not_allowed"),
        (b"FOO /v1/nothing", 404, "not_found"),
        (b"GET /v1/nothing", 404, "not_found"),
        (b"PUT /v1/jobs", 405, "method_not_allowed"),
    ],
)
def test_methods_of_nobody_s_and_websockets_are_answered_by_the_api(
    stack: RunningStack, line: bytes, status: int, code: str
) -> None:
    upgrade = b"Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    for more in (b"Connection: close\r\n", b"Connection: close, Upgrade\r\n" + upgrade):
        told, headers, body = _spoken(stack, line + b" HTTP/1.1\r\nHost: localhost\r\n" + more + b"\r\n")
        assert told == status
        _assert_envelope(told, headers, body, code=code)
        assert ("allow" in headers) == (status == 405)


@pytest.mark.parametrize("path", ["/-/routes", "/-/ROUTES", "/-/", "/-/anything"])
def test_what_serve_tells_about_itself_is_not_public(stack: RunningStack, path: str) -> None:
    answer = stack.get(path)
    assert answer.status_code == 404
    _assert_envelope(answer.status_code, dict(answer.headers), answer.json(), code="not_found")


def test_the_health_of_the_edge_is_public(stack: RunningStack) -> None:
    assert stack.get("/-/healthz").status_code == 200


@pytest.mark.parametrize("header", ["x-request-timeout-seconds", "X-Request-Timeout-Seconds"])
def test_a_client_cannot_cut_a_request_short(stack: RunningStack, header: str) -> None:
    for _ in range(5):
        answer = web.get(f"{stack.base_url}/v1/models", headers={header: "0.000001"})
        assert answer.status_code == 200


def _echoed(stack: RunningStack, *given: str) -> str:
    answer = web.get(
        f"{stack.base_url}/v1/nowhere", headers=[(b"X-Request-Id", value.encode("latin-1")) for value in given]
    )
    assert answer.headers.get_list("x-request-id") == [answer.json()["error"]["request_id"]]
    return answer.headers["x-request-id"]


def test_a_sane_request_id_comes_back_and_no_other(stack: RunningStack) -> None:
    assert _echoed(stack, "order-17:a_b.c") == "order-17:a_b.c"
    for insane in ("a b", "x" * 129, "<script>", "%[env(PATH)]", "\xe9"):
        assert insane not in _echoed(stack, insane)
    assert _echoed(stack, "first", "second") not in {"first", "second"}
    assert _echoed(stack) != _echoed(stack)


def test_nothing_of_the_stack_listens_beyond_loopback(stack: RunningStack) -> None:
    heard = {ip.removeprefix("::ffff:") for ip, _ in stack.listens()}
    assert heard == {"127.0.0.1"}


def test_the_admin_socket_is_its_owner_s(stack: RunningStack) -> None:
    (folder,) = {path.parent for path in stack.ray_folder.glob("h/*/admin.sock")}
    assert (folder / "admin.sock").stat().st_mode & 0o077 == 0
    assert stack.ray_folder.stat().st_mode & 0o077 == 0


def test_a_dead_replica_is_not_noticed_by_those_who_ask_next(stack: RunningStack) -> None:
    one, *others = stack.replicas("api:Api")
    assert others
    os.kill(one.pid, signal.SIGKILL)
    for _ in range(50):
        assert stack.get("/healthz").status_code == 200
    wait_for(lambda: len(stack.replicas("api:Api")) == 2, what="the other replica's return")


def _named(stack: RunningStack, name: str) -> list[psutil.Process]:
    return [process for process in stack.family() if command_of(process).startswith(f"ray::{name}")]


def _refused(stack: RunningStack) -> httpx2.Response | None:
    """The answer that nobody is there; None where a request was under way as the last one died, or still found one."""
    with contextlib.suppress(httpx2.RemoteProtocolError):
        answer = web.get(f"{stack.base_url}/healthz", timeout=_PATIENCE)
        return None if answer.status_code == 200 else answer
    return None


def test_when_every_replica_is_dead_the_answer_is_an_envelope_until_they_are_back(stack: RunningStack) -> None:
    (controller,) = _named(stack, "ServeController")
    # Serve would replace them one by one, and its own proxy would hold a request until the first is there.
    controller.suspend()
    try:
        for process in [*stack.replicas("api:Api"), *_named(stack, "ProxyActor")]:
            process.kill()
        refused = wait_for(lambda: _refused(stack), what="a refusal")
    finally:
        controller.resume()
    assert refused.status_code in {502, 503}
    assert int(refused.headers["retry-after"]) > 0
    _assert_envelope(refused.status_code, dict(refused.headers), refused.json(), code="service_unavailable")
    wait_for(lambda: stack.get("/readyz").status_code == 200, what="readiness")
