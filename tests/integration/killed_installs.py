"""A process that installs models and is killed on the way, each time at another moment: a fork for each.

    python -m tests.integration.killed_installs '{"database_url": …, "blobs": {…}, "endpoint": …, "root": …}'

installs `hf:org/<moment>` for each moment of ``MOMENTS``, and ends with 0 when every one of them was killed.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dreamforge.blobs import BlobSettings
from dreamforge.installation.install import Installer, InstallRequest
from dreamforge.installation.observer import Phase
from dreamforge.installation.opening import WorkshopValues, open_workshop
from dreamforge.models.shelf import Shelf
from dreamforge.store.downloads import DownloadLeases
from dreamforge.store.engine import open_engine
from dreamforge.store.models import ModelRegistry
from tests.integration.installing import LEASE_SECONDS, Watcher

MOMENTS = (
    "resolved",
    "downloading",
    "downloaded",
    "kept",
    "linked",
    "inspecting",
    "placing",
    "placed",
    "publishing",
    "published",
    "registered",
)


def die() -> None:
    """As `kill -9` does it."""
    os.kill(os.getpid(), signal.SIGKILL)


def after(owner: type, method: str) -> None:
    """Have whoever calls this method die when it is done."""
    original = getattr(owner, method)

    def dying(*arguments: Any, **options: Any) -> None:
        original(*arguments, **options)
        die()

    setattr(owner, method, dying)


def before(owner: type, method: str) -> None:
    """Have whoever calls this method die."""
    setattr(owner, method, lambda *_, **__: die())


_PATCHES: dict[str, Callable[[], None]] = {
    "downloaded": lambda: before(Shelf, "keep"),
    "kept": lambda: after(Shelf, "keep"),
    "linked": lambda: after(Shelf, "link"),
    "placing": lambda: before(Shelf, "put"),
    "placed": lambda: after(Shelf, "put"),
    "registered": lambda: after(ModelRegistry, "register"),
}


@dataclass
class Mortal(Watcher):
    """An observer that dies of what it is told."""

    moment: str = ""

    def on_phase(self, phase: Phase) -> None:
        """A phase begins."""
        if {"resolved": Phase.DOWNLOAD, "inspecting": Phase.INSPECT, "published": Phase.REGISTER}.get(
            self.moment
        ) is phase:
            die()

    def on_bytes(self, phase: Phase, path: str, done: int, total: int | None) -> None:
        """How far a file has come."""
        del path
        is_long_on_its_way = total is not None and total * 3 // 4 < done < total
        if is_long_on_its_way and (self.moment, phase) == ("downloading", Phase.DOWNLOAD):
            die()
        if (self.moment, phase) == ("publishing", Phase.PUBLISH):
            die()


def install(told: dict[str, Any], moment: str) -> None:
    """Install until that moment."""
    _PATCHES.get(moment, lambda: None)()
    values = WorkshopValues(
        database_url=told["database_url"],
        models_root=Path(told["root"]),
        blobs=BlobSettings(**told["blobs"]),
        hf_endpoint=told["endpoint"],
    )
    with open_workshop(values) as opened:
        engine = open_engine(values.database_url, application="tests", pool_size=5)
        workshop = replace(opened, leases=DownloadLeases(engine=engine, seconds=LEASE_SECONDS))
        Installer.of(workshop).install(InstallRequest(f"hf:org/{moment}"), observer=Mortal(moment=moment))


def main() -> int:
    """Die of every moment."""
    told = json.loads(sys.argv[1])
    for moment in MOMENTS:
        child = os.fork()
        if child == 0:
            install(told, moment)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.stderr.write(f"{moment} was not survived: {status}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
