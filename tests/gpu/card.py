"""The GPU from outside, as `nvidia-smi` sees it: no process of ours has to open it for that."""

import os
import shutil
import subprocess
import time
from dataclasses import dataclass

TOLERANCE_MIB = 64
"""As much more may be in use after a step than before it."""
_SETTLE_SECONDS = 15.0
_PAUSE = 0.1
_TIMEOUT = 60.0


class NoCard(Exception):
    """There is no NVIDIA GPU, or no `nvidia-smi`."""


@dataclass(frozen=True)
class Card:
    """One GPU. ``index`` is what `nvidia-smi` knows it by: a number in the bus' order, or a UUID."""

    index: str
    name: str
    driver: str
    total_mib: int

    def used_mib(self) -> int:
        """MiB in use, whoever uses them."""
        return int(_asked(self.index, "memory.used")[0])

    def settled_mib(self, before: int) -> int:
        """MiB in use once no more are than ``before``, but for the tolerance, or when waiting for that is in vain."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while (used := self.used_mib()) > before + TOLERANCE_MIB and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        return used


def first_card() -> Card:
    """The first GPU that a process started from here may use. Raises ``NoCard``."""
    if shutil.which("nvidia-smi") is None:
        raise NoCard("there is no nvidia-smi")
    index = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    name, driver, total = _asked(index, "name,driver_version,memory.total")
    return Card(index=index, name=name, driver=driver, total_mib=int(total))


def _asked(index: str, fields: str) -> list[str]:
    command = ["nvidia-smi", "-i", index, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_TIMEOUT)
    if result.returncode != 0:
        raise NoCard(f"nvidia-smi: {(result.stdout + result.stderr).strip()}")
    return [value.strip() for value in result.stdout.strip().split(",")]
