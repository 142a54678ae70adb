"""Single files, brought into a folder of models: each once, however many processes want it."""

import hashlib
import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from dreamforge.errors import DiskFull, DownloadCorrupt, LeaseLost
from dreamforge.installation.disk import disk_errors
from dreamforge.installation.holding import HeldLease, waited_for
from dreamforge.models.descriptor import ModelFile
from dreamforge.models.remote import Location, RemoteFile
from dreamforge.models.shelf import Shelf
from dreamforge.store.downloads import DownloadLeases, Holder

_CHUNK = 4 * 1024 * 1024

OnBytes = Callable[[str, int, int | None], None]
OnWait = Callable[[str, str, int, int | None], None]


class Engine(Protocol):
    """What downloads a file: see ``download.downloader.Downloader``."""

    def fetch(
        self,
        file: RemoteFile,
        locate: Callable[[], Location],
        part: Path,
        *,
        on_bytes: Callable[[int, int | None], None] = ...,
        check: Callable[[], None] = ...,
    ) -> ModelFile:
        """Have the whole, verified file at ``part``."""
        ...


class ShelfFetcher:
    """A ``Fetcher`` into a shelf. A file that is there is taken; one that somebody else brings is waited for.

    ``owner``: who this is, for those who wait. ``check`` is called before every write and every wait, from any thread,
    and raises what is to end it. ``on_bytes(path, done, total)`` and ``on_wait(path, owner, done, total)`` are told how
    far a file has come, here or with somebody else. Once one file has failed the others end too, by the same error.
    """

    def __init__(
        self,
        *,
        shelf: Shelf,
        leases: DownloadLeases,
        downloader: Engine,
        owner: str,
        check: Callable[[], None] = lambda: None,
        on_bytes: OnBytes = lambda *_: None,
        on_wait: OnWait = lambda *_: None,
    ) -> None:
        self._shelf = shelf
        self._place = shelf.place()
        self._leases = leases
        self._downloader = downloader
        self._owner = owner
        self._check_caller = check
        self._on_bytes = on_bytes
        self._on_wait = on_wait
        self._lock = threading.Lock()
        self._downloaded = 0
        self._failure: BaseException | None = None

    @property
    def downloaded_bytes(self) -> int:
        """Bytes that were brought, not found here."""
        return self._downloaded

    def fetch(self, file: RemoteFile, locate: Callable[[], Location], target: Path) -> ModelFile:
        """Have the file at ``target``: see ``have``."""
        return self._linked(lambda: self.have(file, locate), target)

    def copy(self, file: RemoteFile, source: Path, target: Path) -> ModelFile:
        """The same for a file of this machine."""

        def bring(part: Path, held: HeldLease) -> ModelFile:
            return self._copied(file, source, part, held)

        return self._linked(lambda: self._brought(file, bring), target)

    def have(self, file: RemoteFile, locate: Callable[[], Location]) -> ModelFile:
        """Have the file among the shelf's blobs, whole and verified: found there, brought, or brought by another.

        Raises what the downloader raises, ``DatabaseUnavailable``, and what ``check`` raises.
        """

        def bring(part: Path, held: HeldLease) -> ModelFile:
            def on_bytes(done: int, total: int | None) -> None:
                held.tell(done, total)
                self._on_bytes(file.path, done, total)

            return self._downloader.fetch(file, locate, part, on_bytes=on_bytes, check=lambda: self._check_held(held))

        return self._brought(file, bring)

    def _linked(self, have: Callable[[], ModelFile], target: Path) -> ModelFile:
        while True:
            found = have()
            try:
                with self._noting_failure(), disk_errors(self._shelf.root):
                    self._check()
                    if not self._shelf.has(found.sha256):
                        # Somebody has cleaned up in between.
                        continue
                    self._shelf.link(found.sha256, target)
            except FileNotFoundError:
                self._shelf.drop(found.sha256)
                target.unlink(missing_ok=True)
            else:
                return found

    def _brought(self, file: RemoteFile, bring: Callable[[Path, HeldLease], ModelFile]) -> ModelFile:
        with self._noting_failure():
            while True:
                if (found := self._found(file)) is not None:
                    self._on_bytes(file.path, found.size, found.size)
                    return found
                if (found := self._in_turn(file, bring)) is not None:
                    return found

    def _in_turn(self, file: RemoteFile, bring: Callable[[Path, HeldLease], ModelFile]) -> ModelFile | None:
        """The file, brought under its lease; None when that was lost, frozen or cut off from the database."""
        with self._held(file) as held:
            try:
                # Whoever had the lease may have ended in between.
                return self._found(file) or self._kept(file, bring(self._shelf.partial(file.key), held), held)
            except LeaseLost:
                if held.is_good:
                    # Another one, of whoever asked.
                    raise
                return None

    def _found(self, file: RemoteFile) -> ModelFile | None:
        sha256 = file.sha256 or (self._shelf.known_as(file.git_sha1) if file.git_sha1 else None)
        if sha256 is None or not self._shelf.has(sha256, file.size):
            return None
        return ModelFile(path=file.path, size=self._shelf.blob(sha256).stat().st_size, sha256=sha256)

    def _kept(self, file: RemoteFile, brought: ModelFile, held: HeldLease) -> ModelFile:
        held.check()
        with disk_errors(self._shelf.root):
            self._shelf.keep(self._shelf.partial(file.key), brought.sha256)
            if file.git_sha1 is not None:
                self._shelf.remember(file.git_sha1, brought.sha256)
        with self._lock:
            self._downloaded += brought.size
        return ModelFile(path=file.path, size=brought.size, sha256=brought.sha256)

    def _copied(self, file: RemoteFile, source: Path, part: Path, held: HeldLease) -> ModelFile:
        try:
            return self._copied_into(file, source, part, held)
        except DiskFull:
            # A copy does not go on from there, and others have their data on that disk.
            if held.is_good:
                part.unlink(missing_ok=True)
            raise

    def _copied_into(self, file: RemoteFile, source: Path, part: Path, held: HeldLease) -> ModelFile:
        digest, done = hashlib.sha256(), 0
        self._check_held(held)
        with source.open("rb") as reading, disk_errors(self._shelf.root), part.open("wb") as writing:
            while chunk := reading.read(_CHUNK):
                self._check_held(held)
                writing.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                held.tell(done, file.size)
                self._on_bytes(file.path, done, file.size)
            writing.flush()
            os.fsync(writing.fileno())
        if file.size not in {None, done} or file.sha256 not in {None, digest.hexdigest()}:
            part.unlink()
            words = f"{file.path} changed while it was copied, or is not what it should be."
            raise DownloadCorrupt(words, details={"file": file.path})
        return ModelFile(path=file.path, size=done, sha256=digest.hexdigest())

    @contextmanager
    def _held(self, file: RemoteFile) -> Generator[HeldLease]:
        def on_wait(other: Holder) -> None:
            if other.owner == self._owner:
                # A model may have the same file twice.
                return
            self._on_wait(file.path, other.owner, other.bytes_done, other.size)

        with waited_for(
            self._leases, self._place, file.key, owner=self._owner, size=file.size, check=self._check, on_wait=on_wait
        ) as held:
            yield held

    def _check_held(self, held: HeldLease) -> None:
        held.check()
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._check_caller()

    @contextmanager
    def _noting_failure(self) -> Generator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except BaseException as error:
            with self._lock:
                self._failure = self._failure or error
            raise
