"""A program in a terminal of its own, as a person has it: keys go in, the screen comes out."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Self

CTRL_C = "\x03"
TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Runs ``command`` from ``with`` to the end of the block; nothing of it is left behind."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str]) -> None:
        self._command = [sys.executable, "-c", TAKE_TERMINAL, *command]
        self._environment = {**environment, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
        self._seen = ""

    def __enter__(self) -> Self:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            self._command, stdin=theirs, stdout=theirs, stderr=theirs, env=self._environment, start_new_session=True
        )
        os.close(theirs)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._ours)

    def screen(self) -> str:
        """Everything that was shown so far, without colours."""
        while select.select([self._ours], [], [], 0)[0]:
            try:
                shown = os.read(self._ours, 65536)
            except OSError:
                break  # the program has ended
            if not shown:
                break
            self._seen += shown.decode("utf-8", "replace")
        return _ESCAPES.sub("", self._seen)

    def type(self, keys: str) -> None:
        """Press keys; Ctrl-C is a signal to the program, as the terminal sends it."""
        os.write(self._ours, keys.encode())

    def wait_for(self, words: str, *, seconds: float = 120.0) -> None:
        """Return once ``words`` were shown."""
        deadline = time.monotonic() + seconds
        while words not in self.screen():
            assert time.monotonic() < deadline, f"{words!r} was not shown:\n{self.screen()}"
            time.sleep(0.05)

    def wait_for_end(self, *, seconds: float = 60.0) -> int:
        """The exit code. What is shown is read meanwhile: a full terminal would hold the program."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            self.screen()
            assert time.monotonic() < deadline, f"it did not end:\n{self.screen()}"
            time.sleep(0.05)
        self.screen()
        return self.process.returncode
