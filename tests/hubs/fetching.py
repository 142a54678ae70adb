"""Files from a source straight into a folder, without leases or a registry."""

import shutil
from collections.abc import Callable
from pathlib import Path

from dreamforge.models.descriptor import ModelFile
from dreamforge.models.download.downloader import Downloader
from dreamforge.models.download.limits import Limits, Retries
from dreamforge.models.download.transport import Transport
from dreamforge.models.files import find_file, hash_files
from dreamforge.models.remote import Location, RemoteFile


class PlainFetcher:
    """A ``Fetcher`` that keeps what is not whole yet in ``partial``."""

    def __init__(self, partial: Path) -> None:
        partial.mkdir(parents=True, exist_ok=True)
        self._partial = partial
        retries = Retries(most=4, first_pause=0.01, longest_pause=0.05)
        self._downloader = Downloader(
            transport=Transport(), connections=2, retries=retries, limits=Limits(spare=0, piece=64 * 1024)
        )

    def fetch(self, file: RemoteFile, locate: Callable[[], Location], target: Path) -> ModelFile:
        """Download one file."""
        part = self._partial / f"{file.key}-{file.path.replace('/', '-')}"
        fetched = self._downloader.fetch(file, locate, part)
        target.parent.mkdir(parents=True, exist_ok=True)
        part.rename(target)
        return ModelFile(path=file.path, size=fetched.size, sha256=fetched.sha256)

    def copy(self, file: RemoteFile, source: Path, target: Path) -> ModelFile:
        """Copy one file."""
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return hash_files([find_file(target, name=file.path)])[0]
