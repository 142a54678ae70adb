"""How long a page takes at the start of a long history and at its end.

`python -m tests.benchmarks.pages [--rows 1000000] [--rounds 50] [--json FILE]`

Over a fresh PostgreSQL: one job with a million events, and a million jobs. Each figure is the median of the rounds,
which take turns. Prints a table and writes it as JSON.
"""

import argparse
import asyncio
import json
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, text

from dreamforge.store.engine import open_async_engine, open_engine
from dreamforge.store.events import EventFilter
from dreamforge.store.jobs import JobStore
from dreamforge.store.listing import JobFilter, JobPlace
from tests.benchmarks.database import migrated_database
from tests.integration.factories import Jobs, a_job, a_model

_PAGE = 200
_EVENTS = text(
    """
    INSERT INTO events (job_id, seq, id, ts, code, level, payload_json, job_progress)
    SELECT :job, seq, gen_random_uuid(), now(), 'item.progress', 'info', '{"item_index": 0}', 0.5
    FROM generate_series(2, :rows) AS seq
    """
)
_JOBS = text(
    """
    INSERT INTO jobs (id, type, status, priority, model_id, count, params_json, options_json, metadata_json, request_id,
                      created_at)
    SELECT gen_random_uuid(), type, 'succeeded', priority, model_id, count, params_json, options_json, metadata_json,
           request_id, now() - number * interval '1 second'
    FROM jobs, generate_series(1, :rows) AS number
    """
)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, default=Path("build/pages.json"), help="where the figures go")
    arguments = parser.parse_args()
    with migrated_database() as database_url:
        rows = _measure(database_url, arguments)
    _print(rows)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(rows, indent=2))


def _measure(database_url: str, arguments: argparse.Namespace) -> list[dict[str, float | str]]:
    engine = open_engine(database_url, application="benchmark")
    job = a_job(a_model(engine))
    Jobs(database_url).submit(job)
    _fill(engine, job.id, arguments.rows)
    engine.dispose()
    return asyncio.run(_compare(database_url, job.id, arguments))


def _fill(engine: Engine, job_id: uuid.UUID, rows: int) -> None:
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(_EVENTS, {"job": job_id, "rows": rows})
        connection.execute(_JOBS, {"rows": rows})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE events, jobs"))


async def _compare(database_url: str, job_id: uuid.UUID, arguments: argparse.Namespace) -> list[dict[str, float | str]]:
    engine = open_async_engine(database_url, application="benchmark")
    jobs = JobStore(engine=engine)
    last = uuid.UUID(int=2**128 - 1)
    middle = JobPlace(created_at=datetime.now(UTC), id=last)
    async with engine.connect() as connection:
        oldest = (
            await connection.execute(text("SELECT min(created_at) + interval '300 seconds' FROM jobs"))
        ).scalar_one()

    async def events(after: int) -> None:
        found = 0
        async for _ in jobs.events(job_id, EventFilter(after=after)):
            found += 1
            if found == _PAGE:
                return
        raise AssertionError(found)

    async def listed(place: JobPlace) -> None:
        page = await jobs.list(JobFilter(), after=place, limit=_PAGE)
        assert len(page.jobs) == _PAGE

    try:
        return [
            await _row("events of a job", lambda: events(0), lambda: events(arguments.rows - 1000), arguments.rounds),
            await _row(
                "jobs", lambda: listed(middle), lambda: listed(JobPlace(created_at=oldest, id=last)), arguments.rounds
            ),
        ]
    finally:
        await engine.dispose()


async def _row(
    what: str, first: Callable[[], Awaitable[None]], deep: Callable[[], Awaitable[None]], rounds: int
) -> dict[str, float | str]:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for page, found in zip((first, deep), times, strict=True):
            began = time.monotonic()
            await page()
            found.append(1000 * (time.monotonic() - began))
    near, far = (statistics.median(found[rounds // 10 :]) for found in times)
    return {"page": what, "first_ms": round(near, 2), "deep_ms": round(far, 2), "ratio": round(far / near, 2)}


def _print(rows: list[dict[str, float | str]]) -> None:
    table = Table(f"page of {_PAGE}", "first, ms", "deep, ms", "ratio")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
