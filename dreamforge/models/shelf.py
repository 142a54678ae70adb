"""A folder of models: how they lie on a disk.

    <root>/.place                            what names this folder, wherever it is mounted
    <root>/blobs/sha256/ab/<sha256>          every file once, by its content
    <root>/blobs/git/ab/<sha1>               the sha256 of a file that its source knows by another hash
    <root>/partial/                          what is not whole yet
    <root>/<kind>/<name>@<version>/          a model: hard links to its files, and descriptor.json

What is outside of `partial` is whole and verified: it gets there by one rename, after it was written to the disk.
"""

import contextlib
import glob
import os
import shutil
import tempfile
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

_PLACE = ".place"
_PARTIAL = "partial"
_TRY = "~"
"""Stands between a staging folder's name and what tells the tries apart."""


class Shelf:
    """One folder of models, which several processes, and nodes, may use at once."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def place(self) -> uuid.UUID:
        """What names this folder, for whoever mounts it; made with it."""
        path = self.root / _PLACE
        with contextlib.suppress(FileNotFoundError):
            return uuid.UUID(path.read_text().strip())
        self._folder(self.root)
        with tempfile.NamedTemporaryFile("w", dir=self.root, prefix=f"{_PLACE}-", delete=False) as file:
            file.write(f"{uuid.uuid4()}\n")
            file.flush()
            os.fsync(file.fileno())
        made = Path(file.name)
        try:
            # Unlike a rename this takes nobody's place.
            path.hardlink_to(made)
        except FileExistsError:
            pass
        except OSError:
            # No links here: two who are the first in the same instant may have two names for it, until the next start.
            if not path.exists():
                made.replace(path)
        finally:
            made.unlink(missing_ok=True)
        return uuid.UUID(path.read_text().strip())

    def blob(self, sha256: str) -> Path:
        """Where the file of this content is, or would be."""
        return self.root / "blobs" / "sha256" / sha256[:2] / sha256

    def has(self, sha256: str, size: int | None = None) -> bool:
        """True for a file that is here, of this size."""
        try:
            return size in {None, self.blob(sha256).stat().st_size}
        except FileNotFoundError:
            return False

    def partial(self, key: str) -> Path:
        """Where a file is written that is not whole yet."""
        return self._folder(self.root / _PARTIAL) / f"{key}.part"

    def keep(self, partial: Path, sha256: str) -> Path:
        """Make a verified file, which is on the disk, the one of this content."""
        blob = self.blob(sha256)
        self._folder(blob.parent)
        # Whoever runs the service reads it, and nobody writes into what several models share.
        partial.chmod(0o444)
        partial.replace(blob)
        sync_folder(blob.parent)
        return blob

    def known_as(self, git_sha1: str) -> str | None:
        """The sha256 of the file that git knows by this hash, where it was kept here."""
        try:
            return self._alias(git_sha1).read_text().strip()
        except FileNotFoundError:
            return None

    def remember(self, git_sha1: str, sha256: str) -> None:
        """Have ``known_as`` tell it from now on."""
        alias = self._alias(git_sha1)
        self._folder(alias.parent)
        written = self.partial(f"git-{git_sha1}-{uuid.uuid4().hex}")
        written.write_text(f"{sha256}\n")
        written.replace(alias)

    def drop(self, sha256: str) -> None:
        """Remove the file of this content from the blobs. Models that have it keep theirs."""
        self.blob(sha256).unlink(missing_ok=True)

    def link(self, sha256: str, target: Path) -> None:
        """Have the file of this content at ``target`` too, without its bytes where the file system can."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(self.blob(sha256))
        except FileExistsError:
            raise
        except OSError:
            shutil.copyfile(self.blob(sha256), target)
            sync_file(target)

    def can_link(self) -> bool:
        """False where every file is there twice, because the file system has no links: exFAT, some network shares."""
        above = self._folder(self.root / _PARTIAL)
        with tempfile.NamedTemporaryFile(dir=above, prefix="model-") as file:
            linked = Path(f"{file.name}.link")
            try:
                linked.hardlink_to(file.name)
            except OSError:
                return False
            linked.unlink()
            return True

    @contextmanager
    def staging(self, name: str | None = None) -> Generator[Path]:
        """A folder in which a model is put together; it is gone after the block unless it was placed.

        One with a name is its holder's, who sees to that: what others have left by that name is removed. It is never
        the same folder twice, so that one who was frozen, and wakes up, clears away nothing of who came after.
        """
        above = self._folder(self.root / _PARTIAL)
        if name is not None:
            for left in above.glob(f"{glob.escape(name)}{_TRY}*"):
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix="model-" if name is None else f"{name}{_TRY}", dir=above))
        folder.chmod(0o755)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @staticmethod
    def key_of(unfinished: Path) -> str:
        """What the file or folder, one of ``unfinished``, is known by while somebody works on it."""
        return unfinished.name.partition(".part")[0] if unfinished.is_file() else unfinished.name.partition(_TRY)[0]

    def unfinished(self) -> Iterator[Path]:
        """What lies in `partial`: files that are not whole, and folders in which models are put together."""
        return (self.root / _PARTIAL).iterdir() if (self.root / _PARTIAL).is_dir() else iter(())

    def blobs(self) -> Iterator[Path]:
        """Every file that is here, by its content."""
        return (path for path in (self.root / "blobs" / "sha256").glob("*/*") if path.is_file())

    def aliases(self) -> Iterator[Path]:
        """Every file that tells the sha256 of another: see ``known_as``."""
        return (path for path in (self.root / "blobs" / "git").glob("*/*") if path.is_file())

    def linked(self) -> Iterator[Path]:
        """Every file of a model, and of one that is being put together."""
        for above in self.root.iterdir():
            if above.name != "blobs" and above.is_dir():
                yield from (path for path in above.glob("*/**/*") if path.is_file())

    def folder_of(self, kind: str, name: str, version: str) -> Path:
        """Where a model is, or would be."""
        return self.root / kind / f"{name}@{version}"

    def put(self, staged: Path, folder: Path) -> None:
        """Make the staged folder the one of a model, in place of what may be there."""
        for path in (staged, *(path for path in staged.rglob("*") if path.is_dir())):
            sync_folder(path)
        self._folder(folder.parent)
        try:
            staged.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            with self.staging() as old:
                folder.rename(old / "old")
                staged.rename(folder)
        sync_folder(folder.parent)

    def _alias(self, git_sha1: str) -> Path:
        return self.root / "blobs" / "git" / git_sha1[:2] / git_sha1

    def _folder(self, path: Path) -> Path:
        if not path.is_dir():
            self._folder(path.parent)
            path.mkdir(exist_ok=True)
            # What is kept in it is there only if its own name is.
            sync_folder(path.parent)
        return path


def sync_file(path: Path) -> None:
    """Have the bytes of a file on the disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk: a rename is not before this."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
