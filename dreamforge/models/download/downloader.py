"""The one way by which files come from elsewhere.

downloader = Downloader(transport=Transport())
part = shelf.partial(remote_file.key)
file = downloader.fetch(remote_file, locate, part)
shelf.keep(part, file.sha256)
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from dreamforge.errors import DiskFull, DownloadCorrupt, LeaseLost, SourceError
from dreamforge.models.descriptor import ModelFile
from dreamforge.models.download.carriers import Carriers
from dreamforge.models.download.hashing import Hashing
from dreamforge.models.download.limits import WORTHLESS, WRONG_HASH, Limits, Retries
from dreamforge.models.download.part_file import disk_errors
from dreamforge.models.download.partial import Partial, discard, state_of
from dreamforge.models.download.route import Route
from dreamforge.models.download.transport import Transport
from dreamforge.models.remote import Location, RemoteFile

__all__ = ["Downloader", "OnBytes", "discard", "state_of"]

OnBytes = Callable[[int, int | None], None]
"""Told how many bytes of how many are there, a few times a second."""

_LOOK_SECONDS = 0.2
_SAVE_SECONDS = 1.0


def _untold(done: int, total: int | None) -> None:
    del done, total


def _unchecked() -> None:
    pass


class Downloader:
    """Brings files over HTTP, whole and verified, from where they broke off. Thread-safe: several files at once.

    ``connections``: of one file; all that are downloaded at once have as many, and one each besides.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        connections: int = 4,
        stall_seconds: float = 60.0,
        retries: Retries = Retries(),  # noqa: B008 - frozen
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> None:
        self._transport = transport
        self._connections = connections
        self._stall_seconds = stall_seconds
        self._retries = retries
        self._limits = limits
        self._permits = threading.Semaphore(connections - 1)

    def fetch(
        self,
        file: RemoteFile,
        locate: Callable[[], Location],
        part: Path,
        *,
        on_bytes: OnBytes = _untold,
        check: Callable[[], None] = _unchecked,
    ) -> ModelFile:
        """Have the file at ``part``: verified, and on the disk.

        What is there of it already, by ``part`` and its state beside it, is not fetched again. ``locate`` is asked for
        the address, again when one has expired. ``check`` is called before every write and every wait, by any thread;
        what it raises ends the download, and the next one goes on from there: after ``LeaseLost`` nothing is written at
        all. ``on_bytes`` is called by this thread. Raises ``errors.SourceError``, ``DiskFull`` and ``NodeError``. A
        file of another hash is removed.
        """
        check()
        route = Route(locate)
        try:
            with Partial(file, part, self._limits) as partial:
                partial.require_room()
                self._complete(partial, route, on_bytes, check)
                if partial.is_resumed and not partial.is_right():
                    # What an earlier process has left may be of a file that its source has replaced since.
                    check()
                    partial.begin_anew()
                    self._complete(partial, route, on_bytes, check)
                if not partial.is_right():
                    raise _wrong_hash(file)
                check()
                return partial.conclude()
        except LeaseLost:
            # What is there is another's now.
            raise
        except (SourceError, DiskFull) as error:
            if _is_worthless(error) or not _is_begun(part):
                check()
                _discard(part)
            raise

    def _complete(self, partial: Partial, route: Route, on_bytes: OnBytes, check: Callable[[], None]) -> None:
        """Have all bytes there, and hashed. On any way out what is written down is true, and nobody writes."""
        news, over = threading.Event(), threading.Event()
        carriers = Carriers(
            partial=partial,
            route=route,
            transport=self._transport,
            retries=self._retries,
            connections=self._connections,
            permits=self._permits,
            check=check,
            news=news,
            over=over,
        )
        try:
            with Hashing(partial, news, over) as hashing, carriers:
                self._look_after(partial, carriers, hashing, over, on_bytes, check)
        except LeaseLost:
            raise
        except BaseException:
            partial.save()
            raise

    def _look_after(
        self,
        partial: Partial,
        carriers: Carriers,
        hashing: Hashing,
        over: threading.Event,
        on_bytes: OnBytes,
        check: Callable[[], None],
    ) -> None:
        ledger = partial.ledger
        save_at = time.monotonic() + _SAVE_SECONDS
        # That all bytes are there is not all: whoever brought the last of them may have seen more of them come.
        while not (carriers.are_over() and hashing.is_over()):
            over.wait(_LOOK_SECONDS)
            over.clear()
            check()
            carriers.watch(self._stall_seconds)
            on_bytes(ledger.done_bytes, ledger.size)
            if time.monotonic() >= save_at:
                partial.save()
                partial.require_room()
                save_at = time.monotonic() + _SAVE_SECONDS
        on_bytes(ledger.done_bytes, ledger.size)


def _is_begun(part: Path) -> bool:
    return part.exists() and (part.stat().st_size > 0 or state_of(part).exists())


def _is_worthless(error: SourceError | DiskFull) -> bool:
    """True where nothing of what came is of use to the next try.

    Or where others have taken the last byte of the disk, the database among them: then this is what can go. Where the
    download itself has stopped before that, it stays.
    """
    if isinstance(error, DiskFull):
        return "errno" in error.details
    return error.details.get("reason") in WORTHLESS


def _discard(part: Path) -> None:
    with disk_errors():
        discard(part)


def _wrong_hash(file: RemoteFile) -> DownloadCorrupt:
    return DownloadCorrupt(
        f"{file.path} is not what its source said: its hash is another. It was removed; repeat the command, and if it "
        "happens again tell whoever offers the file.",
        details={"file": file.path, "reason": WRONG_HASH},
    )
