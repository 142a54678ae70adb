"""What models are put together with."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from dreamforge.blobs import Blobs
from dreamforge.errors import StorageUnavailable
from dreamforge.installation.fetcher import Engine, OnBytes, OnWait, ShelfFetcher
from dreamforge.installation.publishing import Publisher
from dreamforge.models.shelf import Shelf
from dreamforge.models.sources.registry import Sources
from dreamforge.store.downloads import DownloadLeases
from dreamforge.store.models import ModelRegistry


@dataclass(frozen=True)
class Workshop:
    """The parts. ``blobs``: None where there is no object store. ``owner``: who this is, for those who wait for it."""

    shelf: Shelf
    registry: ModelRegistry
    leases: DownloadLeases
    downloader: Engine
    sources: Sources
    blobs: Blobs | None
    owner: str

    @property
    def publisher(self) -> Publisher | None:
        """What sends files to the object store."""
        return None if self.blobs is None else Publisher(blobs=self.blobs)

    def fetcher(self, *, check: Callable[[], None], on_bytes: OnBytes, on_wait: OnWait) -> ShelfFetcher:
        """What brings single files; see there."""
        return ShelfFetcher(
            shelf=self.shelf,
            leases=self.leases,
            downloader=self.downloader,
            owner=self.owner,
            check=check,
            on_bytes=on_bytes,
            on_wait=on_wait,
        )

    def required_publisher(self) -> Publisher:
        """The same. Raises ``StorageUnavailable`` where there is none."""
        if self.blobs is None:
            raise StorageUnavailable("There is no object store.")
        return Publisher(blobs=self.blobs)


def owner_here() -> str:
    """Who this process is, for those who wait for it."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def install_key(name: str, version: str) -> str:
    """The key of the lease on a model: whoever has it may change what lies there."""
    return f"install-{name}@{version}"
