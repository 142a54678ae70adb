"""A process that writes events at a steady rate and uneven gaps, each in a transaction, and tells when it committed.

`python -m tests.benchmarks.writer DATABASE_URL JOB_ID COUNT`
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
import uuid
from typing import Self

from sqlalchemy import Connection, text

from dreamforge.jobs.events import ItemProgress
from dreamforge.store import events
from dreamforge.store.engine import open_engine

_EVENT = ItemProgress(item_index=0, stage="denoise", stage_progress=0.5, progress=0.5)
# Postgres takes over what a session has counted once a second, or when it is told to.
_COUNT_NOW = text("SELECT pg_stat_force_next_flush()")
_LONGEST_LINE = 1 << 24


class Writer:
    """The process. In the block it is there, and waits for ``write``."""

    def __init__(self, database_url: str, job_id: uuid.UUID, *, count: int) -> None:
        self.job_id = job_id
        self._command = [sys.executable, "-m", "tests.benchmarks.writer", database_url, str(job_id), str(count)]

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=_LONGEST_LINE
        )
        await self._line()
        return self

    async def __aexit__(self, *_: object) -> None:
        # It ends where its input does.
        await self._process.communicate(b"")

    async def write(self, *, rate: float) -> dict[int, float]:
        """Write the events, ``rate`` a second; for each `seq` when its commit had returned, by the monotonic clock.

        Postgres has then counted one transaction for each, and no other.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{rate}\n".encode())
        # The first event is the job's own.
        return dict(enumerate(json.loads(await self._line()), start=2))

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "the writer has ended"
        return line


def main() -> None:
    """Get ready and say so; write when told to; tell the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database_url")
    parser.add_argument("job_id", type=uuid.UUID)
    parser.add_argument("count", type=int)
    arguments = parser.parse_args()
    engine = open_engine(arguments.database_url, application="writer")
    with engine.connect() as connection:
        connection.execute(_COUNT_NOW)
        connection.commit()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        if line := sys.stdin.readline():
            committed = _write(connection, arguments.job_id, count=arguments.count, rate=float(line))
            sys.stdout.write(json.dumps(committed) + "\n")
            sys.stdout.flush()
            sys.stdin.read()
    engine.dispose()


def _write(connection: Connection, job_id: uuid.UUID, *, count: int, rate: float) -> list[float]:
    committed: list[float] = []
    # Uneven, and the same each time: at even gaps every commit would meet the looks at the same moment between two.
    chance = random.Random(1)  # noqa: S311 - no secret
    due = time.monotonic()
    for number in range(1, count + 1):
        connection.execute(*events.append(_EVENT, job_id=job_id))
        if number == count:
            connection.execute(_COUNT_NOW)
        connection.commit()
        committed.append(time.monotonic())
        due += chance.uniform(0.5, 1.5) / rate
        time.sleep(max(0.0, due - time.monotonic()))
    return committed


if __name__ == "__main__":
    main()
