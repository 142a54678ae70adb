"""A child process without whose own children it serves nothing."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dreamforge.embedded.process import Program, ServerProcess
from tests.running_stack import wait_for


@pytest.fixture
def signal_to_go_on(tmp_path: Path) -> Path:
    fifo = tmp_path / "go-on"
    os.mkfifo(fifo)
    return fifo


@pytest.fixture
def late(tmp_path: Path, signal_to_go_on: Path) -> Iterator[ServerProcess]:
    """It answers before it has its vital child."""
    command = ["sh", "-c", f"cat {signal_to_go_on}; sleep 600 & tail -f /dev/null"]
    server = ServerProcess(Program(name="it", command=command, log=tmp_path / "log", vital=("sleep",)))
    yield server
    server.stop(grace=1)


def test_a_server_is_ready_once_its_vital_children_are_there_and_has_ended_with_one(
    late: ServerProcess, signal_to_go_on: Path
) -> None:
    looks = 0

    def answers() -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            signal_to_go_on.write_text("")
        return True

    late.wait_until(answers, timeout=10)
    assert late.ending is None
    (child,) = [child for child in psutil.Process(late.pid).children() if child.name() == "sleep"]
    child.kill()
    wait_for(lambda: late.ending == "its sleep is gone", seconds=10, what="its ending")
