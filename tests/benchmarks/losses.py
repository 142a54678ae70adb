"""What is lost, and what is done twice, when whoever works on a job is killed at the worst moments.

`python -m tests.benchmarks.losses [--trials 5] [--json FILE]`

Each trial is one job. Its worker is killed at a named moment; then a healthy one takes over, and the job is waited for.
Ours is the real dispatcher over a real Ray, PostgreSQL and Valkey, with supervisors that are played and leases of
three seconds. Beside it stands stock RQ, with one queue and with two, and `Retry(max=3)`: its jobs count their own
executions, and commit at their end. RQ finds what was left behind ten to twenty minutes later; those are not waited
for, its records are dated back instead, four times. Prints a table and writes it as JSON.
"""

import argparse
import statistics
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import ray
from rich.table import Table

from dreamforge.embedded.ports import free_port
from dreamforge.embedded.valkey import Valkey
from tests.benchmarks import report
from tests.benchmarks.database import migrated_database
from tests.benchmarks.losses_ours import Ours
from tests.benchmarks.losses_rq import StockRq
from tests.benchmarks.moments import MOMENTS, Fate, Moment

_HEADINGS = ("killed", "system", "trials", "lost", "executed\ntwice", "committed\ntwice", "recovery, s\np50, max")


@dataclass(frozen=True)
class _Row:
    moment: str
    system: str
    trials: int
    lost: int
    executed_twice: int
    committed_twice: int
    recovery_p50: float | None
    recovery_max: float | None


def main() -> None:
    """Kill, count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=5, help="of each cell")
    parser.add_argument("--json", type=Path, default=Path("build/losses.json"), help="where the figures go")
    arguments = parser.parse_args()
    with migrated_database() as database_url, _valkey(arguments.json.parent / "losses") as redis_url, _ray():
        systems: dict[str, Callable[[Moment], Fate]] = {
            "Dream Forge": Ours(database_url, redis_url).fate,
            "RQ, one queue": StockRq(redis_url, queues=1).fate,
            "RQ, two queues": StockRq(redis_url, queues=2).fate,
        }
        rows = [
            _row(moment, system, [fate(moment) for _ in range(arguments.trials)])
            for moment in MOMENTS
            for system, fate in systems.items()
        ]
    _print(rows)
    report.write(arguments.json, arguments, {"rows": [asdict(row) for row in rows]})


def _row(moment: Moment, system: str, fates: list[Fate]) -> _Row:
    times = [fate.recovery for fate in fates if fate.recovery is not None]
    return _Row(
        moment=moment.title,
        system=system,
        trials=len(fates),
        lost=sum(fate.commits == 0 for fate in fates),
        executed_twice=sum(fate.executions > 1 for fate in fates),
        committed_twice=sum(fate.commits > 1 for fate in fates),
        recovery_p50=round(statistics.median(times), 1) if times else None,
        recovery_max=round(max(times), 1) if times else None,
    )


def _print(rows: list[_Row]) -> None:
    table = Table(*_HEADINGS)
    for row in rows:
        times = "" if row.recovery_p50 is None else f"{row.recovery_p50:g}, {row.recovery_max:g}"
        counts = (row.trials, row.lost, row.executed_twice, row.committed_twice)
        table.add_row(row.moment, row.system, *map(str, counts), times)
    report.show(table)


@contextmanager
def _valkey(folder: Path) -> Generator[str]:
    server = Valkey(
        data=folder / "valkey", port=free_port(), log=folder / "valkey.log", password_file=folder / "password"
    )
    server.start()
    try:
        server.wait_ready()
        yield server.url()
    finally:
        server.stop()


@contextmanager
def _ray() -> Generator[None]:
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
