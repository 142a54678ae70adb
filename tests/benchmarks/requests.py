"""Requests a second through Ray Serve, beside the same application under plain uvicorn.

`python -m tests.benchmarks.requests [--seconds 5] [--rounds 3] [--json FILE]`

Starts a stack whose one GPU is held, so that jobs queue up and nothing draws, and one uvicorn process over the same
servers. The two take turns; the figures are the medians of the rounds. Prints a table and writes it as JSON.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
from rich.console import Console
from rich.table import Table

from dreamforge.embedded.ports import free_port
from tests.running_stack import RunningStack
from tests.service import wait_for
from tests.web import web

_BODY = json.dumps({"type": "generate", "params": {"prompt": "a lighthouse at dawn"}})
_PLAIN = "import sys, uvicorn; from deployments.api_replica import build_app; uvicorn.run(build_app(), port=int(sys.argv[1]), log_level='critical', access_log=False)"  # noqa: E501


@dataclass(frozen=True)
class _Burst:
    """Answers a second, and milliseconds to an answer."""

    rate: float
    p50_ms: float
    p99_ms: float


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each burst")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("build/requests.json"), help="where the figures go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="df-requests-") as folder:
        stack = RunningStack(data_dir=Path(folder) / "data")
        stack.data_dir.mkdir()
        stack.start()
        try:
            stack.wait_until_ready()
            with _held(stack), _plain(stack) as plain:
                rows = _measure(stack, plain, arguments)
        finally:
            stack.kill()
    _print(rows)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(rows, indent=2))


@contextmanager
def _held(stack: RunningStack) -> Generator[None]:
    """Nothing is drawn in the block: the only runner is stopped in the middle of its image."""
    stack.post(params={"prompt": "held", "steps": 50, "width": 512, "height": 512})
    found: list[psutil.Process] = []

    def has_begun() -> bool:
        found[:] = [process for process in stack.family() if "dreamforge.runners.process" in process.cmdline()]
        return bool(found)

    wait_for(has_begun, what="a runner")
    found[0].suspend()
    try:
        yield
    finally:
        found[0].kill()


@contextmanager
def _plain(stack: RunningStack) -> Generator[int]:
    """The port of the same application under uvicorn."""
    (raylet,) = [process for process in stack.family() if process.name() == "raylet"]
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", _PLAIN, str(port)], env=raylet.environ())
    try:
        wait_for(lambda: _answers(port), what="uvicorn")
        yield port
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return web.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    except httpx2.TransportError:
        return False


def _measure(stack: RunningStack, plain: int, arguments: argparse.Namespace) -> list[dict[str, float | str]]:
    path = f"/v1/jobs/{stack.post(params={'prompt': 'read'}).json()['id']}"
    requests = {"GET": f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n", "POST": _post()}
    rows: list[dict[str, float | str]] = []
    for method, request in requests.items():
        for connections in (1, 16):
            bursts: dict[int, list[_Burst]] = {stack.ports["PORT"]: [], plain: []}
            for _ in range(arguments.rounds):
                for port, found in bursts.items():
                    found.append(asyncio.run(_burst(port, request.encode(), connections, arguments.seconds)))
            serve, uvicorn = (_median(found) for found in bursts.values())
            rows.append(
                {
                    "request": method,
                    "connections": connections,
                    "serve_rate": round(serve.rate),
                    "serve_p50_ms": round(serve.p50_ms, 1),
                    "serve_p99_ms": round(serve.p99_ms, 1),
                    "uvicorn_rate": round(uvicorn.rate),
                    "uvicorn_p50_ms": round(uvicorn.p50_ms, 1),
                    "uvicorn_p99_ms": round(uvicorn.p99_ms, 1),
                    "ratio": round(serve.rate / uvicorn.rate, 2),
                }
            )
    return rows


def _post() -> str:
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(_BODY)}"
    )
    return f"{head}\r\n\r\n{_BODY}"


async def _burst(port: int, request: bytes, connections: int, seconds: float) -> _Burst:
    times: list[float] = []
    began = time.monotonic()
    await asyncio.gather(*(_ask(port, request, began + seconds, times) for _ in range(connections)))
    took = time.monotonic() - began
    times.sort()
    return _Burst(len(times) / took, 1000 * times[len(times) // 2], 1000 * times[int(len(times) * 0.99)])


async def _ask(port: int, request: bytes, deadline: float, times: list[float]) -> None:
    """One request after the other on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (began := time.monotonic()) < deadline:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")), head
        (length,) = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        await reader.readexactly(length)
        times.append(time.monotonic() - began)
    writer.close()


def _median(bursts: list[_Burst]) -> _Burst:
    return _Burst(*(statistics.median(values) for values in zip(*map(_values, bursts), strict=True)))


def _values(burst: _Burst) -> tuple[float, float, float]:
    return burst.rate, burst.p50_ms, burst.p99_ms


def _print(rows: list[dict[str, float | str]]) -> None:
    table = Table("", "connections", "Serve, 1/s", "p50", "p99, ms", "uvicorn, 1/s", "p50", "p99, ms", "ratio")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
