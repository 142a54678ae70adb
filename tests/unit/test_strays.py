"""What a runner has left behind is found by its mark, when its supervisor is no more."""

import errno
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dreamforge.worker.strays import MARK, end_abandoned, new_mark

_SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")


@contextmanager
def _marked(mark: str) -> Generator[psutil.Process]:
    process = subprocess.Popen(_SLEEP, env={**os.environ, MARK: mark}, start_new_session=True)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _started() -> str:
    return new_mark().split("-")[1]


def test_a_mark_tells_its_supervisor_and_each_of_its_runners() -> None:
    first, second = new_mark(), new_mark()
    assert first != second
    assert first.split("-")[:2] == second.split("-")[:2] == [str(os.getpid()), _started()]


@pytest.mark.parametrize(
    "mark", ["ours", "of another kind", "5", "1-None-x", "2024-01-01", f"0-1-{'0' * 32}", "9" * 5000]
)
def test_those_of_a_supervisor_that_lives_and_what_is_no_mark_are_left_alone(mark: str) -> None:
    with _marked(new_mark() if mark == "ours" else mark) as neighbour:
        end_abandoned()
        assert _lives(neighbour)


def test_what_cannot_be_found_out_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    with _marked(new_mark()) as neighbour:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_text", fail)
            end_abandoned()
            with pytest.raises(OSError, match="Too many"):
                new_mark()
        assert _lives(neighbour)


@pytest.mark.parametrize("whose", ["nobody's", "a zombie's", "a process' that has the number now"])
def test_those_of_a_supervisor_that_is_no_more_are_killed(whose: str) -> None:
    dead = subprocess.Popen((sys.executable, "-c", ""))
    try:
        psutil.Process(dead.pid).wait() if whose == "nobody's" else os.waitid(
            os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT
        )
        pid = os.getpid() if whose.startswith("a process'") else dead.pid
        with _marked(f"{pid}-1-{'0' * 32}") as left:
            end_abandoned()
            assert not _lives(left)
    finally:
        dead.wait()
