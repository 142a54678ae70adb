"""How long an event takes from its commit to the clients of a stream, and what the clients cost Postgres.

`python -m tests.benchmarks.streams [--clients 1 100 1000] [--seconds 20] [--rate 5] [--json FILE]`

Three processes over a fresh PostgreSQL: one replica (the real application under uvicorn), one that writes events, each
in a transaction of its own, and this one, which reads the clients' sockets and does nothing else meanwhile. Lag is from
the moment the commit has returned until a client's bytes are read, by the clock that all processes share. What Postgres
is asked is counted twice: its own count of transactions, less the writer's (each look of the tail is one, and so is
each ping of a pooled connection), and the application's of statements, which knows nothing of pings. Prints a table and
writes it as JSON.
"""

import argparse
import asyncio
import math
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
from rich.table import Table
from sqlalchemy import Engine

from dreamforge.embedded.ports import free_port
from dreamforge.store.engine import open_engine
from tests.benchmarks import report
from tests.benchmarks.database import migrated_database
from tests.benchmarks.replica import STATEMENTS
from tests.benchmarks.transactions import TransactionCount
from tests.benchmarks.writer import Writer
from tests.integration.factories import Jobs, a_job, a_model
from tests.integration.live_api import end_abruptly
from tests.service import wait_for
from tests.web import web

_ID = re.compile(rb"^id: (\d+)$", re.MULTILINE)
_LAST_CHUNK = b"0\r\n\r\n"
_TARGET_MS = 500
_TARGET_CHANGE = 0.1
_CONNECT_AT_ONCE = 8
_CONNECT_SECONDS = 120.0
_SETTLE_SECONDS = 5.0
_HEADINGS = (
    "clients",
    "p50, ms",
    "p99, ms",
    "max, ms",
    "API's\nstatements/s",
    "API's\nCPU, %",
    "Postgres's\ntransactions/s",
    "to the\nfirst",
    f"p99 under\n{_TARGET_MS} ms",
    f"to the first\n± {_TARGET_CHANGE:.0%}",
)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 100, 1000])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--rate", type=float, default=5.0, help="events a second")
    parser.add_argument("--json", type=Path, default=Path("build/streams.json"), help="where the figures go")
    arguments = parser.parse_args()
    with migrated_database() as database_url:
        rows = _measure_all(database_url, arguments)
    _print(rows, arguments.rate)
    report.write(arguments.json, arguments, {"rows": rows})


def _measure_all(database_url: str, arguments: argparse.Namespace) -> list[dict[str, float]]:
    engine = open_engine(database_url, application="benchmark")
    port = free_port()
    api = subprocess.Popen([sys.executable, "-m", "tests.benchmarks.replica", database_url, str(port)])
    try:
        wait_for(lambda: _answers(port), what="the API")
        model = a_model(engine)
        rows: list[dict[str, float]] = []
        with TransactionCount(database_url) as transactions:
            replica = _Replica(port, psutil.Process(api.pid), transactions)
            for clients in arguments.clients:
                job = a_job(model, count=4)
                Jobs(database_url).submit(job)
                writer = Writer(database_url, job.id, count=round(arguments.seconds * arguments.rate))
                row = asyncio.run(_measure(replica, writer, engine, clients=clients, rate=arguments.rate))
                rows.append(_compared(row, rows[0] if rows else row))
        return rows
    finally:
        api.terminate()
        api.wait()
        engine.dispose()


def _answers(port: int) -> bool:
    try:
        return web.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    except httpx2.TransportError:
        return False


@dataclass(frozen=True)
class _Counts:
    """What the replica has cost so far."""

    at: float
    transactions: int
    statements: int
    cpu_seconds: float


@dataclass(frozen=True)
class _Replica:
    port: int
    process: psutil.Process
    transactions: TransactionCount

    def counts(self) -> _Counts:
        transactions, at = self.transactions.read(), time.monotonic()
        statements: int = web.get(f"http://127.0.0.1:{self.port}{STATEMENTS}", timeout=30).json()
        cpu = self.process.cpu_times()
        return _Counts(at, transactions, statements, cpu.user + cpu.system)


class _Client(asyncio.Protocol):
    """One reader of a stream. What it reads is looked at later: here it only notes the time."""

    def __init__(self, request: bytes) -> None:
        self.heard: list[tuple[float, bytes]] = []
        self.has_begun = asyncio.Event()
        self.has_ended = asyncio.Event()
        self._request = request
        self._error: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.heard.append((time.monotonic(), data))
        if not self.has_begun.is_set() and b"\nid: 1\n" in self._everything():
            self.has_begun.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._error = exc
        self.has_begun.set()
        self.has_ended.set()

    def events(self) -> Iterator[tuple[int, float]]:
        """The `seq` of each event, and when it came. Fails when the stream did not end by itself."""
        assert self._everything().endswith(_LAST_CHUNK), f"a stream was cut off: {self._error}"
        torn = b""
        for at, data in self.heard:
            whole, _, torn = (torn + data).rpartition(b"\n")
            yield from ((int(seq), at) for seq in _ID.findall(whole + b"\n"))

    def _everything(self) -> bytes:
        return b"".join(data for _, data in self.heard)


async def _measure(replica: _Replica, writer: Writer, engine: Engine, *, clients: int, rate: float) -> dict[str, float]:
    readers = await _connect(replica.port, writer.job_id, clients)
    async with writer:
        await asyncio.sleep(_SETTLE_SECONDS)
        # In threads, here and below: the readers' clock goes on.
        before = await asyncio.to_thread(replica.counts)
        committed = await writer.write(rate=rate)
        after = await asyncio.to_thread(replica.counts)
    await asyncio.to_thread(end_abruptly, engine, writer.job_id)
    await asyncio.gather(*(reader.has_ended.wait() for reader in readers))
    lags = sorted(_lags(readers, committed))
    took = after.at - before.at
    return {
        "clients": clients,
        "p50_ms": round(1000 * lags[len(lags) // 2], 1),
        "p99_ms": round(1000 * lags[math.ceil(len(lags) * 0.99) - 1], 1),
        "max_ms": round(1000 * lags[-1], 1),
        "statements_per_second": round((after.statements - before.statements) / took, 1),
        "api_cpu_percent": round(100 * (after.cpu_seconds - before.cpu_seconds) / took, 1),
        "transactions_per_second": round((after.transactions - before.transactions - len(committed)) / took, 1),
    }


async def _connect(port: int, job_id: uuid.UUID, clients: int) -> list[_Client]:
    request = f"GET /v1/jobs/{job_id}/progress/stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    gate = asyncio.Semaphore(_CONNECT_AT_ONCE)

    async def connect() -> _Client:
        async with gate:
            while True:
                loop = asyncio.get_running_loop()
                _, client = await loop.create_connection(lambda: _Client(request), "127.0.0.1", port)
                await client.has_begun.wait()
                if not client.has_ended.is_set():
                    return client
                # 503, where the machine is busy: as every client does, it comes again.
                await asyncio.sleep(1.0)

    async with asyncio.timeout(_CONNECT_SECONDS):
        return await asyncio.gather(*(connect() for _ in range(clients)))


def _lags(readers: list[_Client], committed: dict[int, float]) -> Iterator[float]:
    for reader in readers:
        events = list(reader.events())
        # The first is the job's own, the last its end.
        assert [seq for seq, _ in events] == list(range(1, len(committed) + 3)), "everything came, once"
        yield from (at - committed[seq] for seq, at in events[1:-1])


def _compared(row: dict[str, float], first: dict[str, float]) -> dict[str, float]:
    """The row beside that of the first number of clients, and beside the targets."""
    relative = round(row["transactions_per_second"] / first["transactions_per_second"], 2)
    return {
        **row,
        "relative_transactions": relative,
        "p99_reached": row["p99_ms"] < _TARGET_MS,
        "transactions_reached": round(abs(relative - 1), 2) <= _TARGET_CHANGE,
    }


def _print(rows: list[dict[str, float]], rate: float) -> None:
    table = Table(*_HEADINGS, title=f"{rate:g} events a second")
    for row in rows:
        table.add_row(*(report.told(value) if isinstance(value, bool) else f"{value:g}" for value in row.values()))
    report.show(table)


if __name__ == "__main__":
    main()
