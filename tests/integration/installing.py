"""Installing from a hub of the test's own, in this process and in others."""

import os
import threading
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from typer.testing import CliRunner, Result

from dreamforge.blobs import BlobSettings
from dreamforge.cli.main import app
from dreamforge.installation.install import Installation, Installer, InstallRequest
from dreamforge.installation.observer import Phase
from dreamforge.installation.opening import WorkshopValues, open_workshop
from dreamforge.installation.workshop import Workshop
from dreamforge.models.remote import RemoteModel
from dreamforge.store.downloads import DownloadLeases
from dreamforge.store.engine import open_engine
from tests import weights
from tests.hubs.hosting import HostedFile
from tests.hubs.huggingface import FakeHuggingFace

LEASE_SECONDS = 2.0
"""Of those that the tests take, so that nobody waits for the dead for long."""


@dataclass
class Watcher:
    """An observer that remembers what it was told."""

    phases: list[Phase] = field(default_factory=list[Phase])
    models: list[RemoteModel] = field(default_factory=list[RemoteModel])
    told: list[tuple[Phase, str, int, int | None]] = field(default_factory=list[tuple[Phase, str, int, int | None]])
    waits: list[tuple[str, str, int, int | None]] = field(default_factory=list[tuple[str, str, int, int | None]])
    has_waited: threading.Event = field(default_factory=threading.Event)

    def on_phase(self, phase: Phase) -> None:
        """A phase begins."""
        self.phases.append(phase)

    def on_resolved(self, model: RemoteModel) -> None:
        """What is going to be downloaded."""
        self.models.append(model)

    def on_bytes(self, phase: Phase, path: str, done: int, total: int | None) -> None:
        """How far a file has come."""
        self.told.append((phase, path, done, total))

    def on_wait(self, path: str, owner: str, done: int, total: int | None) -> None:
        """Who else brings it."""
        self.waits.append((path, owner, done, total))
        self.has_waited.set()


@dataclass(frozen=True)
class Place:
    """A models' folder, a registry, a bucket and a hub."""

    database_url: str
    blobs: BlobSettings
    hub: FakeHuggingFace
    folder: Path

    @property
    def root(self) -> Path:
        """The models' folder."""
        return self.folder / "models"

    def add_checkpoint(self, repo: str, *, size: int = 200_000, fill: bytes = b"") -> HostedFile:
        """A repository with a checkpoint in one file of about ``size`` bytes; how its storage has it."""
        rows = max(1, size // 2048)
        shapes = {**weights.sdxl_checkpoint(), "model.diffusion_model.filling": (rows, 1024)}
        path = weights.write(self.folder / "made" / repo / "XL.safetensors", shapes, fill=fill or repo.encode())
        return self.hub.add(repo, {"XL.safetensors": path.read_bytes()}).head.stored["XL.safetensors"]

    @contextmanager
    def workshop(
        self, *, owner: str | None = None, blobs: BlobSettings | None = None, root: Path | None = None
    ) -> Generator[Workshop]:
        """The parts over this place."""
        values = WorkshopValues(
            database_url=self.database_url,
            models_root=root or self.root,
            blobs=blobs or self.blobs,
            hf_endpoint=self.hub.endpoint,
        )
        engine = open_engine(self.database_url, application="tests", pool_size=5)
        try:
            with open_workshop(values, owner=owner) as opened:
                yield replace(opened, leases=DownloadLeases(engine=engine, seconds=LEASE_SECONDS))
        finally:
            engine.dispose()

    def install(self, reference: str, *, watcher: Watcher | None = None, **request: object) -> Installation:
        """Install it, in this process."""
        with self.workshop() as workshop:
            wanted = replace(InstallRequest(reference=reference), **request)
            return Installer.of(workshop).install(wanted, observer=watcher or Watcher())

    def environment(self) -> dict[str, str]:
        """What a command finds in its environment."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DREAMFORGE_")}
        return {
            **inherited,
            "DREAMFORGE_DATABASE_URL": self.database_url,
            "DREAMFORGE_MODELS_DIR": str(self.root),
            "DREAMFORGE_S3_ENDPOINT": self.blobs.endpoint,
            "DREAMFORGE_S3_ACCESS_KEY": self.blobs.access_key,
            "DREAMFORGE_S3_SECRET_KEY": self.blobs.secret_key,
            "DREAMFORGE_S3_BUCKET": self.blobs.bucket,
            "HF_ENDPOINT": self.hub.endpoint,
        }

    def run(self, *arguments: str | Path, **variables: str) -> Result:
        """`dreamforge model …` as a user types it, in this process: most commands are shorter than Python's start."""
        clean: dict[str, str | None] = {name: None for name in os.environ if name.startswith("DREAMFORGE_")}
        told = {**clean, **self.environment(), **variables}
        result = CliRunner().invoke(app, ["model", *map(str, arguments)], env=told, prog_name="dreamforge")
        assert isinstance(result.exception, SystemExit | None), result.exception
        return result

    def done(self, *arguments: str | Path) -> str:
        """All that a command which ended well has printed."""
        result = self.run(*arguments)
        assert result.exit_code == 0, result.stderr
        return result.stdout + result.stderr

    def files(self, below: str = "") -> list[Path]:
        """Every file of the models' folder."""
        return sorted(path for path in (self.root / below).rglob("*") if path.is_file() and path.name != ".place")


def a_bucket(settings: BlobSettings) -> BlobSettings:
    """A bucket of the test's own, which is not there yet."""
    return replace(settings, bucket=f"models-{uuid.uuid4().hex[:12]}")
