"""A supervisor in the tests' own process, over real servers and a real runner."""

import contextlib
import io
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from PIL import Image
from sqlalchemy import Engine, Row, text
from uuid6 import uuid7

from dreamforge.blobs import Blobs
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.jobs.outcome import Outcome
from dreamforge.models.download.downloader import Downloader
from dreamforge.models.download.transport import Transport
from dreamforge.models.files import find_file, hash_files, hash_folder
from dreamforge.models.shelf import Shelf
from dreamforge.settings import inherited_environment
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.claims import Claim
from dreamforge.store.downloads import DownloadLeases
from dreamforge.store.endings import EndingStore
from dreamforge.store.heartbeats import HeartbeatStore
from dreamforge.store.jobs import NewJob
from dreamforge.store.model_nodes import ModelNodeStore
from dreamforge.store.models import NewModelFile
from dreamforge.worker.child import RUNNER
from dreamforge.worker.gpu import NoGpu
from dreamforge.worker.gpu_health import GpuHealth
from dreamforge.worker.memory import MemoryWatch
from dreamforge.worker.model_supply import ModelStock
from dreamforge.worker.node import Limits, Node
from dreamforge.worker.supervisor import Supervisor
from tests.integration.factories import Jobs, a_job, a_model, claim
from tests.service import wait_for
from tests.web import web


class Bench:
    """Submits jobs for the tiny model and supervises their steps in this process."""

    def __init__(self, *, engine: Engine, jobs: Jobs, store: ObjectStore, model_path: Path, folder: Path) -> None:
        self.engine = engine
        self.jobs = jobs
        self.store = store
        self.folder = folder
        self.model_path = model_path
        self.model = a_model(engine, local_path=str(model_path), files=files_of(model_path))

    def submit(self, *, count: int = 1, options: Mapping[str, Any] | None = None, **params: Any) -> NewJob:
        new = replace(a_job(self.model, count=count, **params), options=dict(options or {}))
        self.jobs.submit(new)
        return new

    def supervise(
        self,
        claimed: Claim,
        *,
        engine: Engine | None = None,
        blobs: Blobs | None = None,
        memory: MemoryWatch | None = None,
        runner: Sequence[str] = RUNNER,
        step_timeout: float = 120.0,
        stall: float = 60.0,
        cancel_grace: float = 10.0,
        database_grace: float = 30.0,
        storage_grace: float = 30.0,
        step_memory: int | None = None,
        node: str = "here",
        cache_size: int | None = None,
        stall_download: float = 60.0,
    ) -> Outcome:
        engine, blobs = engine or self.engine, blobs or self.store.blobs()
        memory = memory or MemoryWatch(gpu=NoGpu(reason="this is a test"), settle_seconds=1, tolerance_mib=64)
        return Supervisor(
            attempt=AttemptStore(engine=engine, fence=claimed.fence),
            fence=claimed.fence,
            blobs=blobs,
            memory=memory,
            health=GpuHealth(
                heartbeats=HeartbeatStore(engine=self.engine), memory=memory, node="here", folder=self.folder
            ),
            stock=ModelStock(
                shelf=self.shelf(node),
                cache_size=cache_size,
                leases=DownloadLeases(engine=engine, seconds=2),
                downloader=Downloader(
                    transport=Transport(plain_hosts=[urlsplit(blobs.endpoint).netloc], proxies={}),
                    stall_seconds=stall_download,
                ),
                nodes=ModelNodeStore(engine=engine),
            ),
            node=Node(
                name=node,
                id=f"ray-{node}",
                locks_folder=self.folder,
                spool_folder=self.folder / "spool",
                environment=inherited_environment(),
                runner=runner,
                step_memory=step_memory,
            ),
            limits=Limits(
                lease=5,
                lease_renew=0.2,
                step=step_timeout,
                step_item=0,
                stall=stall,
                cancel_grace=cancel_grace,
                database_grace=database_grace,
                storage_grace=storage_grace,
            ),
            new_id=uuid7,
            now=lambda: datetime.now(UTC),
        ).run()

    def shelf(self, node: str = "here") -> Shelf:
        """Where a node keeps what it has fetched."""
        return Shelf(self.folder / f"cache-{node}")

    def claim(self) -> Claim:
        claimed = claim(self.engine)
        assert claimed is not None
        return claimed

    def run(self, **job: object) -> tuple[NewJob, Outcome]:
        new = self.submit(**job)  # type: ignore[arg-type] - count is an int, the rest are params
        claimed = self.claim()
        outcome = self.supervise(claimed)
        EndingStore(engine=self.engine).finalize(claimed.fence)
        return new, outcome

    def artifacts(self, job_id: uuid.UUID) -> list[Row[*tuple[object, ...]]]:
        query = text("SELECT * FROM artifacts WHERE job_id = :id ORDER BY item_index")
        with self.engine.connect() as connection:
            return list(connection.execute(query, {"id": job_id}).all())

    def lease_expires_at(self) -> datetime:
        with self.engine.connect() as connection:
            return connection.execute(text("SELECT lease_expires_at FROM steps")).scalar_one()

    def download(self, key: str) -> bytes:
        url = self.store.blobs().presign(key, ttl=60, content_type="image/png", filename="x.png")
        return web.get(url).raise_for_status().content

    def pixels(self, job_id: uuid.UUID) -> list[bytes]:
        return [Image.open(io.BytesIO(self.download(row.s3_key))).tobytes() for row in self.artifacts(job_id)]


def files_of(path: Path) -> tuple[NewModelFile, ...]:
    """What the registry keeps of a model's files."""
    files = hash_folder(path) if path.is_dir() else hash_files([find_file(path)])
    return tuple(NewModelFile(**vars(file)) for file in files)


def wait_for_savers() -> None:
    """Return once no image is being saved: one whose upload was held up may come after its supervisor's end.

    Its connection would be left to the garbage collector, to be noticed in some other test.
    """
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("save_")], what="savers")


def runner_of_this_process() -> psutil.Process | None:
    for child in psutil.Process().children(recursive=True):
        # Others' children may end while they are looked at.
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("dreamforge.runners" in part for part in child.cmdline()):
                return child
    return None
