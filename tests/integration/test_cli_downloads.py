"""How the commands about jobs show one that downloads a model, and `model download --background`."""

import json
import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from dreamforge.api.state import ApiState
from dreamforge.client import Client
from dreamforge.jobs.events import (
    ItemFinished,
    ItemProgress,
    ItemStarted,
    ModelFetching,
    ModelInstalled,
    StepStarted,
)
from dreamforge.jobs.job import Lane
from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.jobs.progress import DownloadStage
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.claims import ClaimStore
from dreamforge.store.endings import EndingStore
from dreamforge.store.fence import Fence
from dreamforge.store.models import NewModel
from tests.integration.cli import ran, succeeded
from tests.integration.door import served

SOURCE = "civitai:277058@1920523"


@pytest.fixture
def url(state: ApiState, model: NewModel) -> Iterator[str]:
    assert model
    with served(state) as url:
        yield url


def _half_done(engine: Engine) -> tuple[AttemptStore, Fence]:
    claim = ClaimStore(engine=engine).claim(lane=Lane.IO, lease_token=uuid.uuid4(), lease_seconds=60)
    assert claim is not None
    attempt = AttemptStore(engine=engine, fence=claim.fence)
    attempt.start(StepStarted(step="download", attempt=1, node="here"), metadata={})
    attempt.begin_item(ItemStarted(item_index=0, seed=None), stage=DownloadStage.RESOLVE)
    attempt.record(ModelFetching(model="xl", origin="civitai", bytes_done=3_000_000, bytes_total=6_000_000))
    attempt.record_progress(ItemProgress(item_index=0, stage="download", stage_progress=0.5, progress=0.43))
    return attempt, claim.fence


def _end(engine: Engine, begun: tuple[AttemptStore, Fence], failure: Failure | None = None) -> None:
    attempt, fence = begun
    attempt.report(Outcome(failure), metadata={})
    EndingStore(engine=engine).finalize(fence)


def test_a_job_that_downloads_is_shown_by_its_source_and_its_share(url: str, engine: Engine) -> None:
    with Client(url) as client:
        job = client.download_model(SOURCE)
    _half_done(engine)
    listed = succeeded(url, "jobs", "list")
    assert SOURCE in listed
    assert "43%" in listed
    shown = succeeded(url, "jobs", "show", str(job.id))
    assert SOURCE in shown
    assert "running, 43%, download" in shown
    assert "image" not in shown
    assert "removed" not in shown


def test_its_log_tells_bytes_and_the_model(url: str, engine: Engine) -> None:
    with Client(url) as client:
        job = client.download_model(SOURCE)
    begun = _half_done(engine)
    begun[0].install(
        ModelInstalled(model_id="1", name="xl", version="11", is_new=True),
        ItemFinished(item_index=0, seed=None, timings={"download": 1.5}),
    )
    _end(engine, begun)
    lines = [line.split("  ", 1)[1].split() for line in succeeded(url, "jobs", "logs", str(job.id)).splitlines()]
    said = {line[0]: " ".join(line[1:]) for line in lines}
    assert said["model.fetching"] == "xl: 3.0 MB of 6.0 MB"
    assert said["model.installed"] == "xl@11"
    assert said["item.finished"] == "download 1.5 s"
    assert ["item.progress", "download", "50%"] in lines
    watched = ran(url, "jobs", "watch", str(job.id))
    assert (watched.returncode, "succeeded, 100%" in watched.stderr) == (0, True)
    assert "✓ xl@11 is installed. See: dreamforge model show xl@11" in watched.stderr


def test_one_that_failed_is_queued_again_in_its_own_words(url: str, engine: Engine) -> None:
    with Client(url) as client:
        job = client.download_model(SOURCE)
    _end(engine, _half_done(engine), Failure("source_forbidden", "Accept the licence."))
    watched = ran(url, "jobs", "watch", str(job.id))
    assert watched.returncode == 1
    assert "source_forbidden: Accept the licence." in watched.stderr
    again = succeeded(url, "jobs", "retry", str(job.id))
    assert "queued again; what was downloaded stays." in again
    assert f"dreamforge jobs watch {job.id}" in again


def test_a_download_in_the_background_prints_its_job_and_how_to_follow_it(url: str) -> None:
    result = ran(url, "model", "download", SOURCE, "--background", "--name", "xl", "--url", url)
    assert result.returncode == 0, result.stderr
    job_id = result.stdout.strip()
    assert f"dreamforge jobs watch {job_id}" in result.stderr
    with Client(url) as client:
        job = client.get(job_id)
    assert (job.type, job.params["source"], job.params["name"]) == ("model_download", SOURCE, "xl")
    told = json.loads(succeeded(url, "model", "download", SOURCE, "--background", "--json"))
    assert told["status"] == "queued"


def test_what_the_service_refuses_is_one_sentence(url: str) -> None:
    result = ran(url, "model", "download", "file:/etc/passwd", "--background")
    assert result.returncode == 1
    assert "source: A file of the service's own machine is taken by `dreamforge model import`" in result.stderr
    assert ".." not in result.stderr
    assert "Traceback" not in result.stderr
