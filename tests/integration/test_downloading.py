"""A download's supervisor, over a hub, an object store, a database and a folder of models that are all real."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from dreamforge.blobs import Blobs
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.embedded.ports import free_port
from dreamforge.errors import LeaseLost
from dreamforge.installation.install import Installer
from dreamforge.jobs.job import Lane
from dreamforge.jobs.outcome import Outcome
from dreamforge.jobs.progress import DownloadStage
from dreamforge.models.download.downloader import Downloader
from dreamforge.models.download.transport import Transport
from dreamforge.models.shelf import Shelf
from dreamforge.models.sources.registry import open_sources
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.claims import Claim, ClaimStore
from dreamforge.store.downloads import DownloadLeases
from dreamforge.store.endings import EndingStore, RetryRules
from dreamforge.store.jobs import JobRecord, NewJob
from dreamforge.store.models import ModelRegistry
from dreamforge.worker.attempt import RunningAttempt
from dreamforge.worker.downloading import DownloadSupervisor
from tests import weights
from tests.hubs.civitai import FakeCivitai, HubFile, HubVersion
from tests.hubs.hosting import Fault
from tests.hubs.hub_server import Answer, Question
from tests.integration.factories import Jobs, a_download, a_model
from tests.service import wait_for

pytestmark = pytest.mark.timeout(120)

SOURCE = "civitai:277058@1920523"
SLOWLY = Fault(drip=0.05, drip_bytes=16 * 1024)
_MOST_SECONDS = 5.0
"""A cancel takes less than one, on a machine with nothing else to do."""


class _Hub(FakeCivitai):
    """Holds its answers for as long as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = threading.Event()
        self.answers.set()

    def answer(self, question: Question) -> Answer:
        self.answers.wait(60)
        return super().answer(question)


class Downloads:
    """Jobs that download, and their supervisor in this process."""

    def __init__(self, *, engine: Engine, jobs: Jobs, store: ObjectStore, hub: _Hub, folder: Path) -> None:
        self.engine = engine
        self.jobs = jobs
        self.store = store
        self.hub = hub
        self.shelf = Shelf(folder / "models")
        file = weights.write(folder / "detail.safetensors", weights.kohya_lora(rank=256), fill=b"detail")
        self.size = file.stat().st_size
        version = hub.add(HubVersion(1920523, 277058, [HubFile("detail.safetensors", file)], type="LORA"))
        (self.file,) = version.stored.values()

    def submit(self, source: str = SOURCE, **params: Any) -> NewJob:
        new = a_download(source, **params)
        self.jobs.submit(new)
        return new

    def claim(self) -> Claim:
        with self.engine.begin() as connection:
            connection.execute(text("UPDATE steps SET next_attempt_at = NULL"))
        token = a_download().id
        claim = ClaimStore(engine=self.engine).claim(lane=Lane.IO, lease_token=token, lease_seconds=30)
        assert claim is not None
        return claim

    def supervise(self, claim: Claim, *, blobs: Blobs | None = None) -> Outcome:
        running = RunningAttempt(
            attempt=AttemptStore(engine=self.engine, fence=claim.fence),
            fence=claim.fence,
            node="here",
            node_id=None,
            lease=5,
            lease_renew=0.2,
            database_grace=30,
            cancel_grace=10,
        )
        installer = Installer(
            shelf=self.shelf,
            registry=ModelRegistry(engine=self.engine),
            leases=DownloadLeases(engine=self.engine, seconds=2),
            downloader=Downloader(transport=Transport(), connections=1),
            sources=open_sources(civitai_endpoint=self.hub.endpoint),
            blobs=blobs or self.store.blobs(),
            owner=f"attempt {claim.fence.step_id}",
        )
        return DownloadSupervisor(running=running, installer=installer).run()

    def run(self, *, blobs: Blobs | None = None) -> str | None:
        """Claim, supervise, finalize; the code that the attempt failed with."""
        claim = self.claim()
        outcome = self.supervise(claim, blobs=blobs)
        EndingStore(engine=self.engine, rules=RetryRules()).finalize(claim.fence)
        return outcome.failure.code if outcome.failure else None

    def find(self, new: NewJob) -> JobRecord:
        return self.jobs.find(new.id)

    def told(self, new: NewJob, code: str) -> list[dict[str, Any]]:
        return [event.payload for event in self.jobs.events(new.id) if event.code == code]

    def models(self) -> list[str]:
        with self.engine.connect() as connection:
            query = text("SELECT name || '@' || version FROM models WHERE installed AND enabled ORDER BY 1")
            return list(connection.scalars(query))


@pytest.fixture
def downloads(engine: Engine, database_url: str, object_store: ObjectStore, tmp_path: Path) -> Iterator[Downloads]:
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE downloads"))
    with _Hub() as hub:
        yield Downloads(engine=engine, jobs=Jobs(database_url), store=object_store, hub=hub, folder=tmp_path)
        hub.answers.set()


def test_it_ends_with_a_model_that_can_be_used_and_tells_of_every_byte(downloads: Downloads) -> None:
    new = downloads.submit(name="detail", version="2")
    assert downloads.run() is None
    assert downloads.models() == ["detail@2"]
    record = downloads.find(new)
    assert (record.job.status, record.job.items_done, record.job.progress) == ("succeeded", 1, 1.0)
    fetched = downloads.told(new, "model.fetching")
    assert fetched[-1] == {
        "model": "detail",
        "origin": "civitai",
        "bytes_done": downloads.size,
        "bytes_total": downloads.size,
        "file": "detail.safetensors",
    }
    progress = downloads.told(new, "item.progress")
    # Of two that wait to be written at once only the later is.
    stages = list(dict.fromkeys(told["stage"] for told in progress))
    assert stages == [stage.value for stage in DownloadStage if stage in stages]
    assert stages[-1] == "register"
    assert [told["progress"] for told in progress] == sorted(told["progress"] for told in progress)
    (installed,) = downloads.told(new, "model.installed")
    assert (installed["name"], installed["version"], installed["is_new"]) == ("detail", "2", True)
    (finished,) = downloads.told(new, "item.finished")
    assert finished["seed"] is None
    assert {"resolve", "download", "inspect", "publish", "register"} == set(finished["timings"])
    assert record.steps[0].metadata_json["download"] == {
        "model_id": installed["model_id"],
        "downloaded_bytes": downloads.size,
        "is_published": True,
    }


def test_what_is_installed_already_is_downloaded_by_nobody_again(downloads: Downloads) -> None:
    downloads.submit()
    assert downloads.run() is None
    sent = downloads.file.bytes_sent
    again = downloads.submit()
    assert downloads.run() is None
    assert downloads.file.bytes_sent == sent
    assert [told["is_new"] for told in downloads.told(again, "model.installed")] == [False]


def test_a_cancel_ends_it_within_moments_and_a_retry_goes_on_from_there(downloads: Downloads) -> None:
    downloads.file.fault = SLOWLY
    new = downloads.submit()
    claim = downloads.claim()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(downloads.supervise, claim)
        wait_for(lambda: downloads.told(new, "model.fetching"), what="the first news of bytes")
        began = time.monotonic()
        downloads.jobs.cancel(new.id)
        failure = running.result(60).failure
    assert time.monotonic() - began < _MOST_SECONDS
    assert failure is not None
    assert failure.code == "cancelled"
    EndingStore(engine=downloads.engine).finalize(claim.fence)
    assert downloads.find(new).job.status == "cancelled"
    assert downloads.models() == []
    downloads.file.fault = Fault()
    sent = wait_for(lambda: downloads.file.bytes_sent, what="the end of the answer that was cut off")
    assert sent < downloads.size
    downloads.jobs.retry(new.id)
    assert downloads.run() is None
    assert downloads.find(new).job.status == "succeeded"
    # What a socket held when it was closed was sent, and has not come; the rest has.
    assert downloads.file.bytes_sent - sent < downloads.size
    assert len(downloads.models()) == 1


def test_a_hub_that_does_not_answer_holds_no_cancel_up(downloads: Downloads) -> None:
    downloads.hub.answers.clear()
    new = downloads.submit()
    claim = downloads.claim()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(downloads.supervise, claim)
        wait_for(lambda: downloads.hub.requests, what="the question to the hub")
        began = time.monotonic()
        downloads.jobs.cancel(new.id)
        failure = running.result(60).failure
    assert time.monotonic() - began < _MOST_SECONDS
    assert failure is not None
    assert failure.code == "cancelled"


def test_an_attempt_that_was_replaced_registers_nothing(downloads: Downloads) -> None:
    downloads.file.fault = SLOWLY
    new = downloads.submit()
    claim = downloads.claim()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(downloads.supervise, claim)
        wait_for(lambda: downloads.told(new, "model.fetching"), what="the first news of bytes")
        with downloads.engine.begin() as connection:
            connection.execute(text("UPDATE steps SET lease_token = gen_random_uuid()"))
        with pytest.raises(LeaseLost):
            running.result(60)
    assert downloads.models() == []
    assert downloads.find(new).job.status == "running"


def test_a_step_over_its_time_limit_is_ended(downloads: Downloads) -> None:
    downloads.file.fault = SLOWLY
    new = downloads.submit()
    with downloads.engine.begin() as connection:
        connection.execute(text("""UPDATE jobs SET options_json = '{"step_timeout": 1}'"""))
    assert downloads.run() == "runner_timeout"
    assert downloads.find(new).job.status == "failed"


def _gone(downloads: Downloads) -> None:
    downloads.hub.versions[1920523].is_published = False


def _for_members(downloads: Downloads) -> None:
    downloads.hub.versions[1920523].needs_token = True


def _damaged(downloads: Downloads) -> None:
    downloads.file.fault = Fault(flips=5000)


def _taken(downloads: Downloads) -> None:
    a_model(downloads.engine, name="detail", version="1")


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (_gone, "source_not_found"),
        (_for_members, "source_forbidden"),
        (_damaged, "download_corrupt"),
        (_taken, "conflict"),
    ],
)
def test_what_no_other_attempt_would_mend_fails_it_with_its_code(downloads: Downloads, spoil: Any, code: str) -> None:
    spoil(downloads)
    known = downloads.models()
    new = downloads.submit(name="detail", version="1")
    assert downloads.run() == code
    error = downloads.find(new).job.error_json
    assert error is not None
    assert (error["code"], downloads.find(new).job.status) == (code, "failed")
    assert error["message"]
    assert downloads.models() == known


def test_a_model_that_is_not_in_the_object_store_is_not_done_and_only_that_is_done_again(
    downloads: Downloads,
) -> None:
    new = downloads.submit()
    settings = downloads.store.settings()
    away = Blobs(type(settings)(**{**vars(settings), "endpoint": f"http://127.0.0.1:{free_port()}"}))
    assert downloads.run(blobs=away) == "storage_unavailable"
    assert downloads.find(new).steps[0].status == "queued", "it is tried again"
    (retrying,) = downloads.told(new, "step.retrying")
    assert "dreamforge model publish" in retrying["error"]["message"]
    sent = downloads.file.bytes_sent
    assert downloads.run() is None
    assert downloads.file.bytes_sent == sent
    assert downloads.find(new).job.status == "succeeded"


def test_a_folder_that_cannot_be_used_is_the_node_s_trouble_and_another_attempt_s(downloads: Downloads) -> None:
    new = downloads.submit()
    downloads.shelf.root.write_text("no folder")
    assert downloads.run() == "node_error"
    downloads.shelf.root.unlink()
    assert downloads.run() is None
    assert downloads.find(new).job.status == "succeeded"


def test_of_two_that_want_the_same_one_waits_and_says_so(downloads: Downloads) -> None:
    downloads.file.fault = SLOWLY
    first, second = downloads.submit(), downloads.submit()
    claims = [downloads.claim(), downloads.claim()]
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(downloads.supervise, claims[0])
        wait_for(lambda: downloads.told(first, "model.fetching"), what="the first news of bytes")
        other = pool.submit(downloads.supervise, claims[1])
        wait_for(lambda: downloads.told(second, "log"), what="word of the wait")
        downloads.file.fault = Fault()
        assert one.result(90).failure is None
        assert other.result(90).failure is None
    (waiting,) = downloads.told(second, "log")
    assert "is being downloaded already" in waiting["message"]
    assert downloads.file.bytes_sent == downloads.size
    assert downloads.told(first, "log") == []
    assert len(downloads.models()) == 1
