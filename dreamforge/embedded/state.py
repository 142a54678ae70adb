"""What a running stack writes about itself into its data folder, and who holds the folder."""

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import psutil

from dreamforge.embedded.trouble import AlreadyRunning

_STATE_FILE = "stack.json"
_LOCK_FILE = "lock"
_LOOK_SECONDS = 0.5
"""Whoever asks for the holder holds the file himself for a moment."""


@dataclass(frozen=True)
class PartState:
    """One server: its process, its version once it has answered, where it listens and where its output goes."""

    title: str
    pid: int
    version: str | None
    address: str
    log: str


@dataclass(frozen=True)
class StackState:
    """The stack over one data folder. Times are seconds since the epoch; ``ready_at`` is None while it starts."""

    pid: int
    started_at: float
    ready_at: float | None
    api: str
    dashboard: str
    parts: dict[str, PartState]


class DataDirLock:
    """The data folder, held by one stack at a time. The kernel gives it back when the holder ends, however it ends."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / _LOCK_FILE
        self._stream: IO[str] | None = None

    def acquire(self) -> None:
        """Hold the folder. Raises ``AlreadyRunning``."""
        stream = self._path.open("a+")
        deadline = time.monotonic() + _LOOK_SECONDS
        while not _is_locked(stream):
            if time.monotonic() > deadline:
                stream.close()
                raise AlreadyRunning(self._path.parent)
            time.sleep(_LOOK_SECONDS / 10)
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        self._stream = stream

    @property
    def is_held(self) -> bool:
        """True once ``acquire`` has returned."""
        return self._stream is not None


def _is_locked(stream: IO[str]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(data_dir: Path) -> int | None:
    """The process that runs a stack over the folder, or None."""
    try:
        with (data_dir / _LOCK_FILE).open() as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(stream.read() or 0) or None
    except (FileNotFoundError, NotADirectoryError):
        pass
    return None


def write_state(data_dir: Path, state: StackState) -> None:
    """Replace the state, readable for its owner only."""
    unfinished = data_dir / f"{_STATE_FILE}.unfinished"
    unfinished.touch(mode=0o600)
    unfinished.write_text(json.dumps(asdict(state), indent=2))
    unfinished.rename(data_dir / _STATE_FILE)


def read_state(data_dir: Path) -> StackState | None:
    """The state of the stack that runs over the folder, or None when none runs or it has just begun."""
    pid = holder(data_dir)
    if pid is None:
        return None
    try:
        content = json.loads((data_dir / _STATE_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None
    parts = {name: PartState(**part) for name, part in content.pop("parts").items()}
    state = StackState(**content, parts=parts)
    # A file that a killed stack left says nothing about the one that runs now.
    return state if state.pid == pid else None


def left_behind(data_dir: Path) -> list[psutil.Process]:
    """Servers that live on of a stack which was killed: they end by themselves, Ray's after a while."""
    path = data_dir / _STATE_FILE
    try:
        written_at = path.stat().st_mtime
        pids = [part["pid"] for part in json.loads(path.read_text())["parts"].values()]
    except (FileNotFoundError, ValueError, KeyError):
        return []
    return [process for pid in pids if (process := _process(pid)) and process.create_time() <= written_at]


def _process(pid: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.NoSuchProcess:
        return None


def forget_state(data_dir: Path) -> None:
    """Remove the state of a stack that has stopped."""
    (data_dir / _STATE_FILE).unlink(missing_ok=True)
