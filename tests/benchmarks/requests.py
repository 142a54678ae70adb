"""Requests a second through Ray Serve, beside the same application under plain uvicorn.

`python -m tests.benchmarks.requests [--seconds 5] [--rounds 4] [--queued 1000] [--json FILE]`

Starts a stack and, over the same servers, `uvicorn --workers`: as many processes as Serve has replicas, each with as
many connections to the database. What is between the two is Serve and HAProxy. `GET` reads a job that has succeeded.
`POST` adds to a queue that is long already: the stack's one GPU is held, so that nothing is drawn. The two take turns,
each first in every second round; the figures are the medians of the rounds, and count good answers only. Prints a table
and writes it as JSON.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg
from rich.table import Table

from dreamforge.embedded.ports import free_port
from tests.benchmarks import report
from tests.running_stack import RunningStack
from tests.service import wait_for

_BODY = json.dumps({"type": "generate", "params": {"prompt": "a lighthouse at dawn"}})
_POST = (
    "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    f"Content-Length: {len(_BODY)}\r\n\r\n{_BODY}"
)
_REPLICAS = 2
"""Of the API, with ten connections each to the database: `serve_config.yaml`, and what ``build_app`` does by itself."""
_CONNECTIONS = (1, 16)
_WARM_UP_SECONDS = 1.0
_TARGET = 1 / 3


@dataclass
class _Burst:
    """The seconds of each good answer, how many answers were 503, and how long all of it took."""

    times: list[float] = field(default_factory=list[float])
    errors: int = 0
    took: float = 0.0

    def figures(self) -> tuple[float, float, float]:
        """Answers a second, and milliseconds to one: the median, and the 99th percentile."""
        assert self.times, f"no good answer, and {self.errors} errors"
        times = sorted(self.times)
        return len(times) / self.took, 1000 * times[len(times) // 2], 1000 * times[int(len(times) * 0.99)]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each burst")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--queued", type=int, default=1000, help="jobs in the queue before POST is measured")
    parser.add_argument("--json", type=Path, default=Path("build/requests.json"), help="where the figures go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="df-requests-") as folder:
        stack = RunningStack(data_dir=Path(folder) / "data")
        stack.data_dir.mkdir()
        stack.start()
        try:
            stack.wait_until_ready()
            ended = stack.run(params={"prompt": "read"})
            assert ended["status"] == "succeeded", ended
            with _held(stack), _plain(stack, log=Path(folder) / "uvicorn.log") as plain:
                rows = _measure(stack, plain, ended["id"], arguments)
        finally:
            stack.kill()
    _print(rows)
    report.write(arguments.json, arguments, {"rows": rows})


@contextmanager
def _held(stack: RunningStack) -> Generator[None]:
    """Nothing is drawn in the block: the only runner is stopped in the middle of a long job."""
    wait_for(lambda: not _runners(stack), what="the end of the last job's runner")
    stack.post(params={"prompt": "held", "steps": 50}, count=100).raise_for_status()
    wait_for(lambda: _runners(stack), what="a runner")
    (runner,) = _runners(stack)
    runner.suspend()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            runner.kill()


def _runners(stack: RunningStack) -> list[psutil.Process]:
    return _processes(stack, lambda process: "dreamforge.runners.process" in process.cmdline())


def _processes(stack: RunningStack, is_wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in stack.family():
        # Workers and runners come and go.
        with contextlib.suppress(psutil.NoSuchProcess):
            if is_wanted(process):
                found.append(process)
    return found


@contextmanager
def _plain(stack: RunningStack, *, log: Path) -> Generator[int]:
    """The port of the same application under uvicorn."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "uvicorn", "--factory", "deployments.api_replica:build_app"),
        *("--port", str(port), "--workers", str(_REPLICAS), "--no-access-log"),
    ]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=_environment(stack), stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for(
            lambda: log.read_text().count("Application startup complete") == _REPLICAS,
            what="uvicorn",
            instead=log.read_text,
        )
        yield port
    finally:
        process.terminate()
        process.wait()


def _environment(stack: RunningStack) -> dict[str, str]:
    """What the stack's replicas find in their environment."""
    (raylet,) = _processes(stack, lambda process: process.name() == "raylet")
    return raylet.environ()


def _measure(
    stack: RunningStack, plain: int, ended: str, arguments: argparse.Namespace
) -> list[dict[str, float | str]]:
    get = f"GET /v1/jobs/{ended} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    ports = (stack.ports["PORT"], plain)
    rows = [_row("GET", get, ports, connections, arguments) for connections in _CONNECTIONS]
    _fill_queue(stack, plain, arguments.queued)
    return rows + [_row("POST", _POST, ports, connections, arguments) for connections in _CONNECTIONS]


def _fill_queue(stack: RunningStack, plain: int, count: int) -> None:
    posted = 0
    while posted < count:
        posted += len(asyncio.run(_burst(plain, _POST, max(_CONNECTIONS), _WARM_UP_SECONDS)).times)
    # Autovacuum would at some moment of the measurement, and Postgres would plan otherwise from then on.
    with psycopg.connect(_environment(stack)["DREAMFORGE_DATABASE_URL"], autocommit=True) as connection:
        connection.execute("ANALYZE")


def _row(
    method: str, request: str, ports: tuple[int, int], connections: int, arguments: argparse.Namespace
) -> dict[str, float | str]:
    bursts: dict[int, list[_Burst]] = {port: [] for port in ports}
    for port in ports:
        asyncio.run(_burst(port, request, connections, _WARM_UP_SECONDS))
    for number in range(arguments.rounds):
        for port in ports if number % 2 == 0 else reversed(ports):
            bursts[port].append(asyncio.run(_burst(port, request, connections, arguments.seconds)))
    serve, uvicorn = (_told(name, found) for name, found in zip(("serve", "uvicorn"), bursts.values(), strict=True))
    ratio = serve["serve_rate"] / uvicorn["uvicorn_rate"]
    compared = {"ratio": round(ratio, 2), "target": round(_TARGET, 2), "reached": ratio >= _TARGET}
    return {"request": method, "connections": connections, **serve, **uvicorn, **compared}


def _told(name: str, bursts: list[_Burst]) -> dict[str, float]:
    rate, p50, p99 = (statistics.median(values) for values in zip(*(burst.figures() for burst in bursts), strict=True))
    return {
        f"{name}_rate": round(rate, 1),
        f"{name}_p50_ms": round(p50, 1),
        f"{name}_p99_ms": round(p99, 1),
        f"{name}_errors": sum(burst.errors for burst in bursts),
    }


async def _burst(port: int, request: str, connections: int, seconds: float) -> _Burst:
    burst = _Burst()
    began = time.monotonic()
    await asyncio.gather(*(_ask(port, request.encode(), began + seconds, burst) for _ in range(connections)))
    burst.took = time.monotonic() - began
    return burst


async def _ask(port: int, request: bytes, deadline: float, burst: _Burst) -> None:
    """One request after the other on one connection, and on another one when the server has closed it."""
    while time.monotonic() < deadline:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        is_open = True
        while is_open and (began := time.monotonic()) < deadline:
            writer.write(request)
            status, is_open = await _answer(reader)
            if status == 503:
                burst.errors += 1
            else:
                burst.times.append(time.monotonic() - began)
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """The status of an answer that has been read, and whether the connection stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head[9:12])
    assert status in {200, 201, 503}, head
    lengths = [int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
    if not lengths:
        # HAProxy's own errors end with the connection.
        await reader.read()
        return status, False
    await reader.readexactly(lengths[0])
    return status, b"\r\nconnection: close\r\n" not in head


def _print(rows: list[dict[str, float | str]]) -> None:
    servers = [f"{name}{unit}" for name in ("Serve", "uvicorn") for unit in (", 1/s", "\np50, ms", "\np99, ms")]
    table = Table("", "connec-\ntions", *servers, "ratio", "target", "reached", "errors:\nS. / u.")
    for row in rows:
        shown = {name: value for name, value in row.items() if not name.endswith("_errors")}
        *figures, target, reached = shown.values()
        errors = f"{row['serve_errors']} / {row['uvicorn_errors']}"
        table.add_row(*(str(value) for value in figures), f"≥ {target}", report.told(bool(reached)), errors)
    report.show(table)


if __name__ == "__main__":
    main()
