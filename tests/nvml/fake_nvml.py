"""NVML's shared library with the same C functions, over a machine that a test describes."""

import _ctypes
import ctypes
import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynvml
import pytest

_SOURCE = Path(__file__).with_suffix(".c")
MIB = 1024 * 1024
NOT_AVAILABLE = -1
"""What NVML says of a process whose memory it does not know."""


def build(folder: Path) -> Path:
    """Compile the library into ``folder``, under the name that programs load. Skips without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("NVML's stand-in takes a C compiler, and there is none")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", f"-Wl,-soname,{library.name}", "-o", str(library), str(_SOURCE)],
        check=True,
    )
    return library


@dataclass
class Card:
    """A GPU: MiB in all and in use, whether it is cut into slices (None: it cannot be), and who uses how much of it."""

    uuid: str
    total: int = 8192
    used: int = 100
    mig: bool | None = None
    processes: dict[int, int] = field(default_factory=dict[int, int])


@dataclass
class Slice:
    """A part of a card."""

    uuid: str
    parent: str
    total: int = 1024
    used: int = 10
    processes: dict[int, int] = field(default_factory=dict[int, int])


class FakeMachine:
    """What the library answers from: written whole, so that no reader sees a half."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.devices: list[Card | Slice] = []
        self.errors: dict[str, int] = {}
        self.write()

    def write(self) -> None:
        """Have it take effect."""
        partial = self.file.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in self._lines()))
        partial.replace(self.file)

    def calls(self, function: str) -> int:
        """How often a function was called."""
        log = Path(f"{self.file}.calls")
        return log.read_text().split().count(function) if log.exists() else 0

    def _lines(self) -> list[str]:
        lines = [f"error {function} {code}" for function, code in self.errors.items()]
        for device in self.devices:
            sizes = f"{device.total * MIB} {device.used * MIB}"
            if isinstance(device, Card):
                lines.append(f"card {device.uuid} {sizes} {-1 if device.mig is None else int(device.mig)}")
            else:
                lines.append(f"slice {device.uuid} {device.parent} {sizes}")
            lines += [
                f"process {device.uuid} {pid} {used if used == NOT_AVAILABLE else used * MIB}"
                for pid, used in device.processes.items()
            ]
        return lines


@contextmanager
def loaded(library: Path, machine: FakeMachine) -> Generator[None]:
    """In the block this process has the library in NVML's place."""
    nvml: Any = pynvml
    before = os.environ.get("FAKE_NVML")
    os.environ["FAKE_NVML"] = str(machine.file)
    # Whoever asks for a library of that name gets the one that is loaded already.
    ours = ctypes.CDLL(str(library))
    _forget()
    try:
        yield
    finally:
        theirs = nvml.nvmlLib
        _forget()
        for handle in (theirs, ours):
            if handle is not None:
                _ctypes.dlclose(handle._handle)
        del os.environ["FAKE_NVML"]
        if before is not None:
            os.environ["FAKE_NVML"] = before


def _forget() -> None:
    nvml: Any = pynvml
    nvml.nvmlLib = None
    nvml._nvmlGetFunctionPointer_cache.clear()
