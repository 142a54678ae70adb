"""Programs that a report starts, each in a process of its own, as a step is."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
"""The tree this belongs to: `python -m` looks there first."""
_TAIL = 4000
# As the supervisor has it, see `dreamforge.worker.child`, which needs more than a bare machine has.
_SET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONUNBUFFERED": "1",
}


class ProgramFailed(Exception):
    """It did not do what it was started for; with the end of its output."""


def start(
    module: str,
    *arguments: str,
    output: IO[bytes],
    inherited: Sequence[int] = (),
    stdin: int = subprocess.DEVNULL,
    stdout: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a module of this tree. ``output`` is a file for what it has to say; ``stdout`` another place for a part."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=stdin,
        stdout=output if stdout is None else stdout,
        stderr=output,
        env={**os.environ, **_SET},
        cwd=ROOT,
        pass_fds=tuple(inherited),
    )


def run(module: str, *arguments: str, output: IO[bytes]) -> str:
    """Run a module to its end; what it printed. Raises ``ProgramFailed``."""
    with start(module, *arguments, output=output, stdout=subprocess.PIPE) as process:
        printed, _ = process.communicate()
    if process.returncode != 0:
        raise ProgramFailed(f"{module} ended with {process.returncode}: {tail(output)}")
    return printed.decode()


def tail(output: IO[bytes]) -> str:
    """The end of what a program has written so far."""
    output.seek(max(0, output.seek(0, os.SEEK_END) - _TAIL))
    return output.read().decode("utf-8", "replace").strip()
