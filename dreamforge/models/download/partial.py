"""A file that is being downloaded, as it lies on the disk: its bytes, which of them are there, and their hashes."""

import threading
from pathlib import Path
from typing import Self

from dreamforge.errors import DownloadCorrupt
from dreamforge.models.descriptor import ModelFile
from dreamforge.models.download.answers import Mark
from dreamforge.models.download.digest import Digest
from dreamforge.models.download.ledger import Ledger, Piece, Span
from dreamforge.models.download.limits import TOO_LONG, Limits
from dreamforge.models.download.part_file import PartFile, disk_errors
from dreamforge.models.download.saved_state import SavedState, load, save
from dreamforge.models.remote import RemoteFile


class Partial:
    """What is there of one file. Thread-safe, as far as each thread writes its own pieces.

    ``is_resumed``: some of it was brought by an earlier process.
    """

    def __init__(self, file: RemoteFile, path: Path, limits: Limits) -> None:
        self.file = file
        self.path = path
        self.limits = limits
        self.mark = Mark()
        self.has_hash = file.sha256 is not None or file.git_sha1 is not None
        self._state = state_of(path)
        # What is written down is of one file, never half of the one that has taken its place.
        self._saving = threading.Lock()
        self._part = PartFile(path)
        size, done = self._found()
        self.is_resumed = bool(done)
        self.ledger = Ledger(size=size, most=limits.most, done=done)
        self.digest = Digest(self._part, self.ledger, has_git_sha1=file.git_sha1 is not None)
        self._saved = done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._part.close()

    def _found(self) -> tuple[int | None, tuple[Span, ...]]:
        state, there = load(self._state), self._part.size
        if state is None and self.has_hash and there and there == self.file.size:
            # Whole, and not yet where it belongs when its process was killed. Its hash will tell.
            return there, ((0, there),)
        if state is not None and self._is_of_use(state):
            self.mark = Mark(etag=state.etag, last_modified=state.last_modified)
            done = tuple((begin, min(end, there)) for begin, end in state.done if begin < there)
            return state.size if self.file.size is None else self.file.size, done
        self._part.cut(0)
        return self.file.size, ()

    def _is_of_use(self, state: SavedState) -> bool:
        is_told = self.has_hash or (state.etag or state.last_modified) is not None
        return is_told and (self.file.size is None or state.size in {None, self.file.size})

    @property
    def may_be_pieced(self) -> bool:
        """False when nothing would tell that two parts are of different files."""
        return self.has_hash or self.mark.condition() is not None

    def write(self, piece: Piece, data: bytes) -> None:
        """Have the next bytes of a piece on the disk."""
        self._part.write(data, piece.at)
        self.ledger.wrote(piece, len(data))

    def learn_size(self, size: int) -> None:
        """The source has told how long the file is. Raises ``DownloadCorrupt``, and ``DiskFull``, for too much."""
        if self.file.size is None and size > self.limits.most:
            raise too_long(self.file, self.limits.most)
        self.ledger.learn_size(size)
        self.require_room()

    def require_room(self) -> None:
        """Raise ``DiskFull`` unless the rest of the file goes onto the disk, and leaves free what is to stay free."""
        size = self.ledger.size
        if not self.ledger.is_whole:
            self._part.require_room(0 if size is None else size, spare=self.limits.spare)

    def begin_anew(self, *, size: int | None = None) -> None:
        """Throw away what is there. Nobody may be writing."""
        with self._saving, disk_errors():
            self._state.unlink(missing_ok=True)
            self.ledger.begin_anew(size=self.file.size if size is None else size)
            self._part.cut(0)
            self.digest.begin_anew()
            self.mark = Mark()
            self.is_resumed = False
            self._saved = ()

    def save(self) -> None:
        """Have what came so far on the disk, and then what there is to know of it."""
        with self._saving:
            done = self.ledger.done
            if done == self._saved or self.is_hashed:
                return
            mark = self.mark
            self._part.sync_data()
            state = SavedState(self.ledger.size, mark.etag, mark.last_modified, done)
            with disk_errors():
                save(state, self._state)
            self._saved = done

    @property
    def is_hashed(self) -> bool:
        """True once all of it is there and was read."""
        return self.ledger.is_whole and self.digest.place == self.ledger.size

    def is_right(self) -> bool:
        """True when the whole file has the hashes that its source told."""
        found = self.digest.hashes()
        return self.file.sha256 in {None, found.sha256} and self.file.git_sha1 in {None, found.git_sha1}

    def conclude(self) -> ModelFile:
        """Have the whole file on the disk, and nothing beside it."""
        size = self.ledger.size or 0
        if self._part.size != size:
            self._part.cut(size)
        self._part.sync()
        with disk_errors():
            self._state.unlink(missing_ok=True)
        return ModelFile(path=self.file.path, size=size, sha256=self.digest.hashes().sha256)


def state_of(part: Path) -> Path:
    """Where it is written down which bytes of ``part`` are there; gone once it is whole."""
    return part.with_name(f"{part.name}.json")


def discard(part: Path) -> None:
    """Remove what is there of a file that was begun."""
    for path in (part, state_of(part)):
        path.unlink(missing_ok=True)


def too_long(file: RemoteFile, most: int) -> DownloadCorrupt:
    """What is said of a file that does not end where it should."""
    return DownloadCorrupt(
        f"{file.path} is longer than {most:,} bytes, which is all that it may have.",
        details={"file": file.path, "most": most, "reason": TOO_LONG},
    )
