"""A job's images as files, saved as they are finished."""

import errno
import hashlib
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from dreamforge.api.schemas import Artifact, Job
from dreamforge.cli.wording import slug
from dreamforge.client import Client
from dreamforge.embedded.trouble import StackError
from dreamforge.jobs.image_format import extension_of

_SHORT_ID = 8


@dataclass(frozen=True)
class ImageFile:
    """A saved image. ``is_new`` is False for one that was there already."""

    path: str
    item_index: int
    seed: int
    checksum: str
    is_new: bool

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


class ImageFiles:
    """Saves what a job has finished into ``folder``, each image once; nothing that is there is overwritten.

    ``keeps_equal``: a file that is there and is the image, byte for byte, is taken for it and not fetched again.
    """

    def __init__(self, *, client: Client, folder: Path, keeps_equal: bool = False) -> None:
        self._client = client
        self._folder = folder
        self._keeps_equal = keeps_equal
        self._saved: dict[str, ImageFile] = {}

    def prepare(self) -> None:
        """Make the folder. Raises ``StackError`` when nothing can be saved there."""
        with self._told():
            self._folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self._folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    @property
    def saved(self) -> list[ImageFile]:
        """What was saved so far, in the order of the images."""
        return sorted(self._saved.values(), key=lambda file: file.item_index)

    def save_finished(self, job: Job) -> Iterator[ImageFile]:
        """Save the images that are new since the last call."""
        if job.progress.items_done > len(self._saved):
            yield from self.save_all(job)

    def save_all(self, job: Job) -> Iterator[ImageFile]:
        """Save the images of the job that were not saved yet."""
        for artifact in self._client.artifacts(job.id):
            if str(artifact.id) not in self._saved:
                yield self.save(artifact, job)

    def save(self, artifact: Artifact, job: Job) -> ImageFile:
        """Save one image, once."""
        file = self._saved.get(str(artifact.id)) or self._save(artifact, job)
        self._saved[str(artifact.id)] = file
        return file

    def _save(self, artifact: Artifact, job: Job) -> ImageFile:
        for path in self._free_names(artifact, job):
            with self._told():
                is_there = path.exists()
                if is_there and not (self._keeps_equal and _checksum(path) == artifact.checksum):
                    continue
                if not is_there:
                    self._client.download(artifact, path)
            return ImageFile(str(path), artifact.item_index, artifact.seed, artifact.checksum, is_new=not is_there)
        raise AssertionError(artifact.id)

    @contextmanager
    def _told(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise StackError(f"Nothing can be saved in {self._folder}: {error.strerror}.") from error

    def _free_names(self, artifact: Artifact, job: Job) -> Iterator[Path]:
        # An id begins with the time, so that jobs of one minute share it: its end tells them apart.
        short = job.id.hex[-_SHORT_ID:]
        stem = f"{slug(str(job.params.get('prompt', '')))}-{artifact.seed}-{short}"
        extension = extension_of(artifact.format)
        yield self._folder / f"{stem}.{extension}"
        for number in count(2):
            yield self._folder / f"{stem}-{number}.{extension}"


def _checksum(path: Path) -> str | None:
    """The file's checksum as artifacts have theirs; None for what is no file."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
