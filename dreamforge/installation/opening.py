"""From the settings' values to what models are installed, verified and cleaned up with."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from dreamforge.blobs import Blobs, BlobSettings
from dreamforge.installation.install import Installer
from dreamforge.installation.workshop import Workshop, owner_here
from dreamforge.models.download.downloader import Downloader
from dreamforge.models.download.transport import Transport
from dreamforge.models.shelf import Shelf
from dreamforge.models.sources.registry import open_sources
from dreamforge.store.downloads import LEASE_SECONDS, DownloadLeases
from dreamforge.store.engine import open_engine
from dreamforge.store.models import ModelRegistry

_CONNECTIONS = 5
"""To the database: three files at once, each with its lease, and the model's own."""


@dataclass(frozen=True)
class WorkshopValues:
    """What the settings say. ``blobs``: None for what is to stay on this machine. Tokens go to their endpoints only."""

    database_url: str
    models_root: Path
    blobs: BlobSettings | None
    hf_endpoint: str = "https://huggingface.co"
    hf_token: str | None = field(default=None, repr=False)
    civitai_endpoint: str = "https://civitai.com"
    civitai_token: str | None = field(default=None, repr=False)
    connections: int = 4
    stall_seconds: float = 60.0
    lease_seconds: float = LEASE_SECONDS


@contextmanager
def open_workshop(values: WorkshopValues, *, owner: str | None = None) -> Generator[Workshop]:
    """What models are put together with, for as long as the block takes. ``owner``: see ``Installer``."""
    engine = open_engine(values.database_url, application="dreamforge-model", pool_size=_CONNECTIONS)
    try:
        yield Workshop(
            shelf=Shelf(values.models_root),
            registry=ModelRegistry(engine=engine),
            leases=DownloadLeases(engine=engine, seconds=values.lease_seconds),
            downloader=Downloader(
                transport=Transport(plain_hosts=_plain_hosts(values.blobs)),
                connections=values.connections,
                stall_seconds=values.stall_seconds,
            ),
            sources=open_sources(
                hf_endpoint=values.hf_endpoint,
                hf_token=values.hf_token,
                civitai_endpoint=values.civitai_endpoint,
                civitai_token=values.civitai_token,
            ),
            blobs=Blobs(values.blobs) if values.blobs else None,
            owner=owner or owner_here(),
        )
    finally:
        engine.dispose()


@contextmanager
def open_installer(values: WorkshopValues, *, owner: str | None = None) -> Generator[Installer]:
    """The same as an installer."""
    with open_workshop(values, owner=owner) as workshop:
        yield Installer.of(workshop)


def _plain_hosts(blobs: BlobSettings | None) -> tuple[str, ...]:
    parts = urlsplit(blobs.endpoint if blobs else "")
    return (parts.netloc,) if parts.scheme == "http" else ()
