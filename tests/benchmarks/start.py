"""How long `dreamforge up` takes to its first image, and what it then holds in memory.

`python -m tests.benchmarks.start [--json FILE]`

Starts a stack over an empty folder, measures it, stops it, and starts it again over what is there now. Prints two
tables and writes both as JSON. Memory is PSS: pages that processes share are shared out among them.
"""

import argparse
import re
import signal
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil
from rich.table import Table

from tests.benchmarks import report
from tests.running_stack import RunningStack

_MIB = 1024 * 1024
_PHASE = re.compile(r"^✓ (?P<name>[A-Z]\w*).*?(?P<seconds>[\d.]+) s$")
_TOTAL = re.compile(r"Dream Forge is ready after (?P<seconds>[\d.]+) s")
_NAMES = {
    "postgres": "PostgreSQL",
    "valkey-server": "Valkey",
    "rclone": "S3",
    "gcs_server": "Ray: GCS",
    "raylet": "Ray: raylet",
    "haproxy": "HAProxy",
}
_MARKS = {
    "dreamforge.cli.main": "dreamforge up",
    "ServeReplica:api": "API, 2 replicas",
    "ServeReplica:dispatcher": "dispatcher",
    "ServeController": "Ray Serve: controller",
    "HAProxyManager": "Ray Serve: HAProxy's manager",
    "ProxyActor": "Ray Serve: fallback proxy",
    "dashboard": "Ray: dashboard and agents",
    "runtime_env": "Ray: dashboard and agents",
    "log_monitor": "Ray: log monitor",
    "monitor.py": "Ray: autoscaler",
    "ray start": "Ray: ray start",
    "ray::": "Ray: idle workers",
    "default_worker": "Ray: idle workers",
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("build/start.json"), help="where the figures go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="df-start-") as folder:
        stack = RunningStack(data_dir=Path(folder) / "data", DREAMFORGE_SELF_CHECK="true")
        stack.data_dir.mkdir()
        fresh, _ = _measure(stack)
        warm, memory = _measure(stack)
    _print(fresh, warm, memory)
    report.write(arguments.json, arguments, {"seconds": {"fresh": fresh, "warm": warm}, "memory_mib": memory})


def _measure(stack: RunningStack) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds by phase, and MiB by process."""
    began = time.monotonic()
    stack.start()
    try:
        stack.wait_until_ready()
        seen = time.monotonic() - began
        memory = _memory(stack)
        stack.send(signal.SIGINT)
        stopping = time.monotonic()
        stack.wait_for_end(seconds=60)
        stopped = time.monotonic() - stopping
    finally:
        stack.kill()
    return {**_phases(stack.said()), "from the command's start": round(seen, 1), "to stop": round(stopped, 1)}, memory


def _phases(said: str) -> dict[str, float]:
    found = (_PHASE.match(line.strip()) for line in said.splitlines())
    phases = {match["name"]: float(match["seconds"]) for match in found if match}
    total = _TOTAL.search(said)
    assert total is not None, said
    return {**phases, "ready": float(total["seconds"])}


def _memory(stack: RunningStack) -> dict[str, float]:
    sizes: dict[str, float] = defaultdict(float)
    for process in stack.family():
        try:
            sizes[_name(process)] += process.memory_full_info().pss / _MIB
        except psutil.NoSuchProcess:
            continue
    rounded = {name: round(size) for name, size in sorted(sizes.items(), key=lambda item: -item[1])}
    return {**rounded, "all": sum(rounded.values())}


def _name(process: psutil.Process) -> str:
    name, command = process.name(), " ".join(process.cmdline())
    if name in _NAMES:
        return _NAMES[name]
    return next((title for mark, title in _MARKS.items() if mark in command), name)


def _print(fresh: dict[str, float], warm: dict[str, float], memory: dict[str, float]) -> None:
    times = Table("phase", "fresh, s", "warm, s")
    for phase in fresh:
        times.add_row(phase, f"{fresh[phase]:.1f}", f"{warm.get(phase, 0.0):.1f}")
    sizes = Table("process", "MiB")
    for name, size in memory.items():
        sizes.add_row(name, f"{size:.0f}")
    report.show(times, sizes)


if __name__ == "__main__":
    main()
