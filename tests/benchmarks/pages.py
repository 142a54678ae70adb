"""How long a page takes at the start of a long history and at its end.

`python -m tests.benchmarks.pages [--rows 1000000] [--rounds 50] [--json FILE]`

Over a fresh PostgreSQL: a million jobs that have succeeded, one of which has a million events. Pages are read as by the
API: the log, a stream's history (its tail asks by the same statement), and the list of jobs. Each figure is the median
of the rounds, which take turns. Prints a table and writes it as JSON.
"""

import argparse
import asyncio
import json
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import psycopg
from rich.table import Table

from dreamforge.api.tail import BATCH
from dreamforge.jobs.events import ItemProgress
from dreamforge.store.engine import open_async_engine, open_engine
from dreamforge.store.events import EventFeed, EventFilter
from dreamforge.store.jobs import JobStore
from dreamforge.store.listing import JobFilter, JobPlace
from tests.benchmarks import report
from tests.benchmarks.database import migrated_database
from tests.integration.factories import Jobs, a_job, a_model

_TARGET = 1.3
_LOG_PAGE = 1000
"""Events that the log reads at once."""
_JOB_PAGE = 200
_LONGEST_PAGE = _LOG_PAGE

# All jobs have ended alike: a page with another kind of job on it would ask for more, as where that one stands in line.
_END = (
    "UPDATE jobs SET status = 'succeeded', started_at = now(), finished_at = now(), progress = 1, items_done = 1",
    "UPDATE steps SET status = 'succeeded', started_at = now(), finished_at = now(), attempt = 1",
    "UPDATE items SET status = 'succeeded', started_at = now(), finished_at = now(), progress = 1, seed = 1",
)
_EVENTS = """
    INSERT INTO events (job_id, seq, step_id, attempt, code, level, payload_json, job_progress)
    SELECT job_id, seq, steps.id, 1, %(code)s, %(level)s, %(payload)s,
           '{"fraction": 0.5, "items_done": 0, "items_total": 1}'
    FROM steps, generate_series(2, %(rows)s) AS seq
"""
_LAST_EVENT = "UPDATE jobs SET event_seq = %(rows)s"
_JOBS = """
    INSERT INTO jobs (id, type, status, priority, model_id, count, params_json, options_json, metadata_json, request_id,
                      created_at, started_at, finished_at, event_seq, progress, items_done)
    SELECT uuidv7(-age), type, status, priority, model_id, count, params_json, options_json, metadata_json, request_id,
           created_at - age, started_at - age, finished_at - age, event_seq, progress, items_done
    FROM jobs, generate_series(1, %(rows)s - 1) AS number, make_interval(secs => number) AS age
"""
_STEPS = """
    INSERT INTO steps (id, job_id, name, position, lane, status, attempt, started_at, finished_at)
    SELECT uuidv7(), jobs.id, name, position, lane, steps.status, attempt, jobs.started_at, jobs.finished_at
    FROM steps, jobs WHERE jobs.id <> steps.job_id
"""
_ITEMS = """
    INSERT INTO items (step_id, item_index, status, progress, seed, started_at, finished_at)
    SELECT steps.id, item_index, items.status, progress, seed, steps.started_at, steps.finished_at
    FROM items, steps WHERE steps.id <> items.step_id
"""
_DEEP_JOB = "SELECT created_at, id FROM jobs ORDER BY created_at, id DESC OFFSET %(pages)s LIMIT 1"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path, default=Path("build/pages.json"), help="where the figures go")
    arguments = parser.parse_args()
    if arguments.rows < 2 * _LONGEST_PAGE:
        parser.error(f"fewer than {2 * _LONGEST_PAGE} rows have no deep page")
    with migrated_database() as database_url:
        job_id = _one_job(database_url)
        place = _fill(database_url, rows=arguments.rows)
        rows = asyncio.run(_compare(database_url, job_id, place, arguments))
    _print(rows, arguments.rows)
    report.write(arguments.json, arguments, {"rows": rows})


def _one_job(database_url: str) -> uuid.UUID:
    engine = open_engine(database_url, application="benchmark")
    try:
        job = a_job(a_model(engine))
    finally:
        engine.dispose()
    Jobs(database_url).submit(job)
    return job.id


def _fill(database_url: str, *, rows: int) -> JobPlace:
    """A million copies of the one job, and a million events of the one; a place shortly before the oldest jobs.

    The service's own connections give up what takes so long.
    """
    event = ItemProgress(item_index=0, stage="denoise", stage_progress=0.5, progress=0.5)
    values = {"rows": rows, "code": event.code, "level": event.level, "payload": json.dumps(event.payload())}
    with psycopg.connect(database_url, autocommit=True) as connection:
        for statement in _END:
            connection.execute(statement)
        connection.execute(_EVENTS, values)
        # Copies tell of as many events, so that their rows are as long.
        connection.execute(_LAST_EVENT, values)
        for statement in (_JOBS, _STEPS, _ITEMS):
            connection.execute(statement, values)
        connection.execute("VACUUM ANALYZE")
        deep = connection.execute(_DEEP_JOB, {"pages": 2 * _JOB_PAGE}).fetchone()
    assert deep is not None
    return JobPlace(*deep)


async def _compare(
    database_url: str, job_id: uuid.UUID, place: JobPlace, arguments: argparse.Namespace
) -> list[dict[str, float | str]]:
    engine = open_async_engine(database_url, application="benchmark")
    jobs, feed = JobStore(engine=engine), EventFeed(engine=engine)
    last = arguments.rows

    async def log(after: int) -> None:
        found = 0
        async with aclosing(jobs.events(job_id, EventFilter(after=after))) as events:
            async for _ in events:
                found += 1
                if found == _LOG_PAGE:
                    return
        raise AssertionError(f"{found} events behind {after}")

    async def history(after: int) -> None:
        news = await feed.news({job_id: after}, most=BATCH)
        assert len(news[job_id].events) == BATCH

    async def listed(after: JobPlace | None) -> None:
        page = await jobs.list(JobFilter(), after=after, limit=_JOB_PAGE)
        assert len(page.jobs) == _JOB_PAGE
        assert all(record.items_total for record in page.jobs)

    try:
        return [
            await _row(f"log, {_LOG_PAGE} events", lambda: log(0), lambda: log(last - _LOG_PAGE), arguments.rounds),
            await _row(f"stream, {BATCH} events", lambda: history(0), lambda: history(last - BATCH), arguments.rounds),
            await _row(f"list, {_JOB_PAGE} jobs", lambda: listed(None), lambda: listed(place), arguments.rounds),
        ]
    finally:
        await engine.dispose()


async def _row(
    what: str, first: Callable[[], Awaitable[None]], deep: Callable[[], Awaitable[None]], rounds: int
) -> dict[str, float | str]:
    # Not measured: pages that are read for the first time, and statements that the driver has not prepared yet.
    for _ in range(10):
        await first()
        await deep()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for page, found in zip((first, deep), times, strict=True):
            began = time.monotonic()
            await page()
            found.append(1000 * (time.monotonic() - began))
    near, far = (statistics.median(found) for found in times)
    ratio = round(far / near, 2)
    return {
        "page": what,
        "first_ms": round(near, 2),
        "deep_ms": round(far, 2),
        "ratio": ratio,
        "target": _TARGET,
        "reached": ratio <= _TARGET,
    }


def _print(rows: list[dict[str, float | str]], count: int) -> None:
    table = Table("page", "first, ms", "deep, ms", "ratio", "target", "reached", title=f"{count:,} rows")
    for row in rows:
        *figures, target, reached = row.values()
        table.add_row(*(str(value) for value in figures), f"≤ {target}", report.told(bool(reached)))
    report.show(table)


if __name__ == "__main__":
    main()
