"""A process that downloads one file, and kills itself where it is told to: as by the power switch of its node.

`python -m tests.integration.download_child '<json>'`
"""

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreamforge.models.download import downloader as engine
from dreamforge.models.remote import Location, RemoteFile
from tests.integration.downloads import downloader


@dataclass(frozen=True)
class Trap:
    """Where the process ends: at the ``count``-th call of a function, such as `part_file:PartFile.write`."""

    function: str
    count: int = 1
    is_after: bool = False

    def __str__(self) -> str:
        return f"{'after' if self.is_after else 'before'} {self.function.partition(':')[2]} {self.count}"

    def set(self) -> None:
        """From now on."""
        module, _, path = self.function.partition(":")
        owner: Any = importlib.import_module(module if module == "pathlib" else f"dreamforge.models.download.{module}")
        *above, name = path.split(".")
        for step in above:
            owner = getattr(owner, step)
        setattr(owner, name, self._deadly(getattr(owner, name)))

    def _deadly(self, function: Callable[..., Any]) -> Callable[..., Any]:
        left = self.count

        def called(*arguments: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0 and not self.is_after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **more)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return called


def order(file: RemoteFile, part: Path, *, connections: int, trap: Trap | None) -> list[str]:
    """The command that downloads this file."""
    what = {"file": asdict(file), "part": str(part), "connections": connections, "trap": trap and asdict(trap)}
    return [sys.executable, "-m", "tests.integration.download_child", json.dumps(what)]


def main() -> None:
    """Download, or die."""
    what = json.loads(sys.argv[1])
    file = RemoteFile(**what["file"])
    # What happens every second otherwise happens a few times in each test.
    engine._LOOK_SECONDS = engine._SAVE_SECONDS = 0.02  # pyright: ignore[reportPrivateUsage] - as above
    if what["trap"]:
        Trap(**what["trap"]).set()
    by = downloader(connections=what["connections"])
    by.fetch(file, lambda: Location(file.url), Path(what["part"]))


if __name__ == "__main__":
    main()
