"""A server as a child process: with a log file, a check for readiness, and an end."""

import contextlib
import ctypes
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from dreamforge.embedded.trouble import StackError
from dreamforge.settings import inherited_environment

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.05
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Program:
    """What to run. ``user`` is a system user to run as, None for our own.

    ``vital`` are names of child processes without which it serves nothing, although it may live on.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] | None = None
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    vital: Sequence[str] = ()


class ServerProcess:
    """A running ``Program``. It and all its descendants end with us: by ``stop``, or by the kernel when we are killed.

    Start it in the main thread: the kernel's signal goes out when the thread that started it ends.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        program.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._vital: dict[str, psutil.Process] = {}
        self._log_start = program.log.stat().st_size if program.log.exists() else 0
        with program.log.open("ab") as log:
            self._process = subprocess.Popen(
                program.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(program.environment if program.environment is not None else inherited_environment()),
                # Ctrl-C in the terminal reaches us alone: we end our servers in order.
                process_group=0,
                user=program.user,
                group=program.user,
                extra_groups=[] if program.user else None,
                preexec_fn=lambda: _LIBC.prctl(_PR_SET_PDEATHSIG, int(program.stop_signal)),
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self._program.log

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    @property
    def ending(self) -> str | None:
        """How it has ended, in a few words; None while it runs."""
        code = self.exit_code
        if code is not None:
            return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return next((f"its {name} is gone" for name, child in self._vital.items() if not _lives(child)), None)

    def wait_until(self, is_ready: Callable[[], bool], *, timeout: float) -> None:
        """Return once ``is_ready``. Raises ``StackError`` when the server ends before, or takes too long."""
        deadline = time.monotonic() + timeout
        while not (is_ready() and self._has_vital()):
            if self.exit_code is not None:
                raise StackError(f"{self._program.name} ended at its start:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise StackError(f"{self._program.name} was not ready after {timeout:g} s:\n{self.log_tail()}")
            time.sleep(_POLL_SECONDS)

    def wait_for_end(self, *, timeout: float) -> int:
        """The exit code. Raises ``StackError`` when it takes too long."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise StackError(f"{self._program.name} did not end within {timeout:g} s.") from error

    def log_tail(self, lines: int = 8) -> str:
        """The last lines that this run has written."""
        with self.log.open("rb") as stream:
            stream.seek(self._log_start)
            text = stream.read()[-16384:].decode("utf-8", "replace")
        return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) + f"\n  ({self.log})"

    def stop(self, *, grace: float) -> None:
        """End it and its descendants: its own way first, SIGKILL for what is left after ``grace`` seconds."""
        family = self._family()
        if self.exit_code is None:
            self._process.send_signal(self._program.stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)
        # Servers that wait for their own children are given a moment; those that do not leave them to us.
        _, left = psutil.wait_procs(family, timeout=min(grace, 1.0))
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=2.0)
        self._process.wait()

    def _family(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _has_vital(self) -> bool:
        """Whether every vital child is there: who answers may be ready before another has begun."""
        if self._program.vital:
            children = self._children()
            self._vital = {name: child for name, child in children if name in self._program.vital and _lives(child)}
        return len(self._vital) == len(self._program.vital)

    def _children(self) -> Iterator[tuple[str, psutil.Process]]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    yield child.name(), child


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
