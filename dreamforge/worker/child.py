"""The runner's process, seen from the supervisor: start it, speak to it, end it, and keep the end of its output."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Self

from dreamforge.errors import NodeError, reason_of
from dreamforge.jobs.channel import FrameChannel
from dreamforge.worker.strays import MARK, adopt_orphans, end_strays, new_mark

log = logging.getLogger(__name__)

RUNNER = (sys.executable, "-m", "dreamforge.runners.process")
"""The program that draws."""
OUTPUT_KEPT = 64 * 1024
"""Bytes of the runner's output that are kept, its last."""
_CHUNK = 64 * 1024
_NO_START = "The runner could not be started."
_SEND_SECONDS = 10.0
"""How long a runner may take to read what it is told, which is little."""
_DEATH_SECONDS = 30.0
"""How long a runner is waited for that was sent SIGKILL."""

_PASSED = frozenset({"PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV"})
_PASSED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "OMP_", "MKL_", "PYTORCH_")
_SET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    # Asks NVML instead of CUDA whether there is a GPU, so that an import opens no context.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    # CUDA's default order is by speed, NVML's by bus: with cards of different kinds, index 0 is not the same card.
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "PYTHONUNBUFFERED": "1",
}
_DEFAULTS = {
    # Threads that wait for each other by spinning take the processor from those they wait for, wherever anything else
    # runs beside them: more than six times as long was measured on two cores.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def runner_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a runner may see of ``environment``: paths, language and devices. No address, no key, no token."""
    passed = {
        name: value for name, value in environment.items() if name in _PASSED or name.startswith(_PASSED_PREFIXES)
    }
    return {**_DEFAULTS, **passed, **_SET}


class RunnerProcess:
    """A runner, from ``with`` to the end of the block; none is left behind it.

    Enter it in the process' main thread: the kernel ends the runner when the thread that started it ends.
    ``inherited`` are descriptors that the runner keeps open, ``command`` another program in the runner's place, and
    ``on_undead`` is told of a runner that does not die.
    """

    def __init__(
        self,
        *,
        environment: Mapping[str, str],
        inherited: Sequence[int] = (),
        stop_grace: float = 5.0,
        command: Sequence[str] = RUNNER,
        on_undead: Callable[["RunnerProcess"], None] = lambda _: None,
    ) -> None:
        self._environment = environment
        self._inherited = tuple(inherited)
        self._stop_grace = stop_grace
        self._command = tuple(command)
        self._mark = new_mark()
        self._output = bytearray()
        self._code: int | None = None
        self._is_stopped = False
        self._on_undead = on_undead

    def __enter__(self) -> Self:
        try:
            adopt_orphans()
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise NodeError(_NO_START, details=reason_of(error)) from error
        self.channel = FrameChannel(ours, send_timeout=_SEND_SECONDS)
        try:
            with theirs:
                self._process = self._spawn(theirs.fileno())
        except OSError as error:
            self.channel.close()
            raise NodeError(_NO_START, details=reason_of(error)) from error
        self._reader = threading.Thread(target=self._keep_output, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        return self

    def _spawn(self, descriptor: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._command, str(descriptor), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**runner_environment(self._environment), MARK: self._mark},
            pass_fds=(descriptor, *self._inherited),
            # A group of its own, to be signalled whole; not a session, which would outlive a killed Ray worker.
            process_group=0,
        )

    def __exit__(self, *_: object) -> None:
        self.stop(self._stop_grace)
        self.channel.close()

    @property
    def pid(self) -> int:
        """The runner's process id, and its group's."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """True once the runner itself has ended, whatever its children do."""
        return self._process.poll() is not None

    def wait(self, timeout: float) -> int | None:
        """The exit code, negative for a signal; None when it has not ended within ``timeout`` seconds."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, grace: float) -> int | None:
        """End the runner and all that it has started: SIGTERM, then SIGKILL after ``grace`` seconds. Its exit code.

        None when it does not die: it is in a call into a driver or a file system that hangs.
        """
        # Once only: a group's id may be another's by the second time.
        if not self._is_stopped:
            self._is_stopped = True
            self._code = self._end(grace)
        return self._code

    def await_death(self) -> None:
        """Return once the runner is no more, however long that takes."""
        self._process.wait()
        end_strays(self._mark)

    def _end(self, grace: float) -> int | None:
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            self.wait(grace)
        # Also when the runner has ended by itself: children of its own may live on in the group.
        self._signal(signal.SIGKILL)
        code = self.wait(_DEATH_SECONDS)
        if code is None:
            log.error("a runner does not die", extra={"pid": self.pid})
            self._on_undead(self)
            return None
        end_strays(self._mark)
        self._reader.join(1.0)
        return code

    def output_tail(self) -> str:
        """The end of what the runner wrote to its standard output and error."""
        return bytes(self._output).decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _keep_output(self, stream: IO[bytes]) -> None:
        with stream:
            while chunk := os.read(stream.fileno(), _CHUNK):
                self._output += chunk
                del self._output[:-OUTPUT_KEPT]
