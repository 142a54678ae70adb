"""Downloads from a server of files, with the patience of tests."""

import hashlib
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dreamforge.models.descriptor import ModelFile
from dreamforge.models.download.downloader import Downloader, state_of
from dreamforge.models.download.limits import Limits, Retries
from dreamforge.models.download.transport import Transport
from dreamforge.models.remote import Location, RemoteFile
from tests.hubs.hosting import HostedFile

PIECE = 64 * 1024
QUICK = Retries(most=4, first_pause=0.01, longest_pause=0.02)
ROOMY = Limits(spare=0, most=64 * 1024 * 1024, piece=PIECE)


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that are the same each time."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - the same each time


def downloader(
    *,
    connections: int = 1,
    stall_seconds: float = 20.0,
    retries: Retries = QUICK,
    limits: Limits = ROOMY,
    transport: Transport | None = None,
) -> Downloader:
    """One that gives up soon."""
    return Downloader(
        transport=transport or Transport(proxies={}),
        connections=connections,
        stall_seconds=stall_seconds,
        retries=retries,
        limits=limits,
    )


def remote(
    file: HostedFile, *, size: int | None = -1, sha256: str | None = "", git_sha1: str | None = None
) -> RemoteFile:
    """The file as its source tells of it."""
    return RemoteFile(
        path=file.path,
        url=file.url,
        size=file.size if size == -1 else size,
        sha256=file.sha256 if sha256 == "" else sha256,
        git_sha1=git_sha1,
    )


@dataclass
class Desk:
    """Where one file is downloaded to, and what is told meanwhile. ``check`` may be replaced."""

    file: HostedFile
    part: Path
    told: list[tuple[int, int | None]] = field(default_factory=list[tuple[int, int | None]])
    located: int = 0
    check: Callable[[], None] = lambda: None

    def locate(self) -> Location:
        """Where the file is now."""
        self.located += 1
        return Location(self.file.url)

    def fetch(self, by: Downloader | None = None, file: RemoteFile | None = None) -> ModelFile:
        """Download it."""
        return (by or downloader()).fetch(
            file or remote(self.file), self.locate, self.part, on_bytes=self._tell, check=lambda: self.check()
        )

    def _tell(self, done: int, total: int | None) -> None:
        self.told.append((done, total))

    @property
    def is_clean(self) -> bool:
        """True when nothing is left of a download."""
        return not self.part.exists() and not self.has_state

    @property
    def has_state(self) -> bool:
        """True when it is written down what is there."""
        return state_of(self.part).exists()


class EndedError(Exception):
    """What a check raises."""


def ending_after(count: int) -> Callable[[], None]:
    """A check that raises from its ``count``-th call on."""
    left = [count]
    lock = threading.Lock()

    def check() -> None:
        with lock:
            left[0] -= 1
            if left[0] < 0:
                raise EndedError

    return check


def is_right(desk: Desk, found: ModelFile) -> bool:
    """True when the very file is there, and nothing of its way."""
    data = desk.file.cut(0, desk.file.size)
    assert found == ModelFile(desk.file.path, len(data), hashlib.sha256(data).hexdigest())
    return desk.part.read_bytes() == data and not desk.has_state
