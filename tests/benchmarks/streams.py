"""How long an event takes from its commit to the clients of a stream, and what the clients cost Postgres.

`python -m tests.benchmarks.streams [--clients 1 100 1000] [--seconds 20] [--rate 5] [--json FILE]`

One replica (the real application under uvicorn, in a process of its own) over a fresh PostgreSQL; the clients are raw
sockets in this process, where events are written too, each in its own transaction. Lag is from the moment the commit
has returned until a client's bytes are read. Prints a table and writes it as JSON.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import httpx2
import uvicorn
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, event

from dreamforge.api.app import create_app
from dreamforge.api.state import ApiRules, ApiState
from dreamforge.blobs import Blobs, BlobSettings
from dreamforge.embedded.ports import free_port
from dreamforge.jobs.events import ItemProgress
from dreamforge.store.engine import open_async_engine, open_engine
from tests.benchmarks.database import migrated_database
from tests.integration.factories import Jobs, a_job, a_model
from tests.integration.live_api import end_abruptly, happen
from tests.service import wait_for
from tests.web import web

_ID = re.compile(rb"^id: (\d+)$", re.MULTILINE)
_SETTLE_SECONDS = 5.0
_STATEMENTS = "/statements"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", nargs=2, metavar=("DATABASE_URL", "PORT"), help=argparse.SUPPRESS)
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 100, 1000])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--rate", type=float, default=5.0, help="events a second")
    parser.add_argument("--json", type=Path, default=Path("build/streams.json"), help="where the figures go")
    arguments = parser.parse_args()
    if arguments.serve:
        _serve(arguments.serve[0], int(arguments.serve[1]))
        return
    with migrated_database() as database_url:
        rows = _measure_all(database_url, arguments)
    _print(rows, arguments.rate)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"events_per_second": arguments.rate, "rows": rows}, indent=2))


def _serve(database_url: str, port: int) -> None:
    rules = ApiRules(redis_outage="accept", max_body=1 << 20, presign_ttl=60, heartbeat_seconds=5.0)
    engine = open_async_engine(database_url, application="api")
    away = "http://127.0.0.1:1"
    blobs = Blobs(BlobSettings(away, away, access_key="none", secret_key="none", bucket="none", region="none"))
    state = ApiState(engine=engine, blobs=blobs, redis_url="redis://127.0.0.1:1/0", rules=rules)
    app = create_app(state)
    sent = [0]

    def count(*_: object) -> None:
        sent[0] += 1

    event.listen(engine.sync_engine, "before_cursor_execute", count)
    app.add_api_route(_STATEMENTS, lambda: sent[0])
    uvicorn.run(app, port=port, log_level="critical", backlog=4096)


def _measure_all(database_url: str, arguments: argparse.Namespace) -> list[dict[str, float]]:
    engine = open_engine(database_url, application="benchmark")
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.streams", "--serve", database_url, str(port)]
    api = subprocess.Popen(command, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    try:
        wait_for(lambda: _answers(port), what="the API")
        model = a_model(engine)
        rows: list[dict[str, float]] = []
        for clients in arguments.clients:
            job = a_job(model, count=4)
            Jobs(database_url).submit(job)
            rows.append(_Measurement(engine, api=api.pid, port=port, job_id=job.id).run(clients, arguments))
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


class _Measurement:
    def __init__(self, engine: Engine, *, api: int, port: int, job_id: uuid.UUID) -> None:
        self._engine = engine
        self._api = api
        self._port = port
        self._job_id = job_id
        self._committed: dict[int, float] = {}
        self._received: list[tuple[int, float]] = []
        self._connected = 0
        self._ended = 0

    def run(self, clients: int, arguments: argparse.Namespace) -> dict[str, float]:
        listening = threading.Thread(target=lambda: asyncio.run(self._listen(clients)))
        listening.start()
        wait_for(lambda: self._connected == clients, what="the clients")
        time.sleep(_SETTLE_SECONDS)
        queries, cpu, began = self._queries(), _cpu(self._api), time.monotonic()
        # The first is the job's own.
        for seq in range(2, 2 + int(arguments.seconds * arguments.rate)):
            progress = ItemProgress(item_index=0, stage="denoise", stage_progress=0.5, progress=0.5)
            happen(self._engine, self._job_id, what=progress)
            self._committed[seq] = time.monotonic()
            time.sleep(max(0.0, began + (seq - 1) / arguments.rate - time.monotonic()))
        took = time.monotonic() - began
        asked, busy = self._queries() - queries, _cpu(self._api) - cpu
        end_abruptly(self._engine, self._job_id)
        listening.join()
        assert self._ended == clients, "every stream ended by itself"
        assert len(self._received) == clients * (len(self._committed) + 2), "everything came, once"
        lags = sorted(at - self._committed[seq] for seq, at in self._received if seq in self._committed)
        return {
            "clients": clients,
            "p50_ms": round(1000 * lags[len(lags) // 2], 1),
            "p99_ms": round(1000 * lags[int(len(lags) * 0.99)], 1),
            "max_ms": round(1000 * lags[-1], 1),
            "queries_per_second": round(asked / took, 1),
            "api_cpu_percent": round(100 * busy / took, 1),
        }

    async def _listen(self, clients: int) -> None:
        gate = asyncio.Semaphore(50)
        await asyncio.gather(*(self._client(gate) for _ in range(clients)))

    async def _client(self, gate: asyncio.Semaphore) -> None:
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            path = f"/v1/jobs/{self._job_id}/progress/stream"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            torn = await reader.readuntil(b"id: 1\n")
        self._received.append((1, time.monotonic()))
        self._connected += 1
        torn = b""
        while chunk := await reader.read(65536):
            now = time.monotonic()
            torn += chunk
            whole, _, torn = torn.rpartition(b"\n")
            self._received.extend((int(seq), now) for seq in _ID.findall(whole))
            if b"\r\n0\r\n\r\n" in chunk or chunk.endswith(b"0\r\n\r\n"):
                self._ended += 1
        writer.close()

    def _queries(self) -> int:
        """Statements that the API has sent to Postgres so far."""
        return web.get(f"http://127.0.0.1:{self._port}{_STATEMENTS}", timeout=30).json()


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _print(rows: list[dict[str, float]], rate: float) -> None:
    headings = ("clients", "p50, ms", "p99, ms", "max, ms", "queries/s", "API's CPU, %")
    table = Table(*headings, title=f"{rate:g} events a second")
    for row in rows:
        table.add_row(*(f"{value:g}" for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
