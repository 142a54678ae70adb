"""One step under its supervisor: a real runner, a real Postgres, a real S3."""

import contextlib
import hashlib
import io
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from PIL import Image
from sqlalchemy import Engine, Row, text
from uuid6 import uuid7

from dreamforge.embedded.object_store import ObjectStore
from dreamforge.errors import Cancelled, LeaseLost
from dreamforge.images.metadata import read_png
from dreamforge.jobs.outcome import Outcome
from dreamforge.settings import inherited_environment
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.claims import Claim, ClaimStore
from dreamforge.store.endings import EndingStore
from dreamforge.store.engine import open_engine
from dreamforge.store.jobs import NewJob
from dreamforge.worker.gpu import NoGpu
from dreamforge.worker.lease import LeaseKeeper
from dreamforge.worker.memory import MemoryWatch
from dreamforge.worker.supervisor import Limits, Node, Supervisor
from tests.integration.factories import Jobs, a_job, a_model, claim

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_engine(database_url, application="tests", pool_size=8)
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE jobs, models CASCADE"))
    yield engine
    engine.dispose()


class Bench:
    """Submits jobs for the tiny model and supervises their steps in this process."""

    def __init__(self, *, engine: Engine, jobs: Jobs, store: ObjectStore, model_path: Path, folder: Path) -> None:
        self.engine = engine
        self.jobs = jobs
        self.store = store
        self.folder = folder
        self.model = a_model(engine, local_path=str(model_path))

    def submit(self, *, count: int = 1, **params: Any) -> NewJob:
        new = a_job(self.model, count=count, **params)
        self.jobs.submit(new)
        return new

    def supervise(self, claimed: Claim, *, step_timeout: float = 120.0) -> Outcome:
        attempt = AttemptStore(engine=self.engine, fence=claimed.fence)
        return Supervisor(
            attempt=attempt,
            fence=claimed.fence,
            blobs=self.store.blobs(),
            memory=MemoryWatch(gpu=NoGpu(reason="this is a test"), settle_seconds=1, tolerance_mib=64),
            node=Node(name="here", locks_folder=self.folder, environment=inherited_environment()),
            limits=Limits(lease=5, lease_renew=0.2, step=step_timeout, database_grace=30),
            new_id=uuid7,
            now=lambda: datetime.now(UTC),
        ).run()

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
        return httpx2.get(url).raise_for_status().content

    def pixels(self, job_id: uuid.UUID) -> list[bytes]:
        return [Image.open(io.BytesIO(self.download(row.s3_key))).tobytes() for row in self.artifacts(job_id)]


@pytest.fixture
def bench(engine: Engine, database_url: str, object_store: ObjectStore, tiny_model: Path, tmp_path: Path) -> Bench:
    return Bench(engine=engine, jobs=Jobs(database_url), store=object_store, model_path=tiny_model, folder=tmp_path)


def _runner_of_this_process() -> psutil.Process | None:
    for child in psutil.Process().children(recursive=True):
        # Others' children may end while they are looked at.
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("dreamforge.runners" in part for part in child.cmdline()):
                return child
    return None


def _wait(condition: Callable[[], object], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def test_every_item_becomes_a_stored_image_that_says_how_it_was_made(bench: Bench) -> None:
    new, outcome = bench.run(count=3, seed=40, width=72, height=64, prompt="fog, täglich", steps=3)
    assert outcome.failure is None
    record = bench.jobs.find(new.id)
    assert (record.job.status, record.job.items_done) == ("succeeded", 3)
    rows = bench.artifacts(new.id)
    assert [row.seed for row in rows] == [40, 41, 42]
    for index, row in enumerate(rows):
        data = bench.download(row.s3_key)
        assert hashlib.sha256(data).hexdigest() == row.checksum
        assert len(data) == row.size_bytes
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.size, image.mode) == ("PNG", (72, 64), "RGB")
        parameters = read_png(data).dreamforge
        assert parameters is not None
        assert (parameters["seed"], parameters["item_index"]) == (40 + index, index)
        assert parameters["prompt"] == "fog, täglich"
        assert parameters["job_id"] == str(new.id)
        assert row.s3_key.startswith(f"dreamforge/default/jobs/{new.id}/generate/")


def test_the_events_tell_the_story_in_order(bench: Bench) -> None:
    new, _ = bench.run(count=2)
    events = bench.jobs.events(new.id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    milestones = [event.code for event in events if event.code not in {"item.progress", "log"}]
    assert milestones[:6] == [
        "job.queued", "job.started", "step.started", "gpu.memory", "model.loading", "model.loaded",
    ]  # fmt: skip
    assert milestones[-4:] == ["gpu.memory", "gpu.memory", "step.succeeded", "job.succeeded"]
    for code in ("item.started", "artifact.created", "item.finished"):
        assert milestones.count(code) == 2
    memory = [event.payload for event in events if event.code == "gpu.memory"]
    assert [reading["phase"] for reading in memory] == ["before", "peak", "after"]
    assert {(reading["available"], reading["message"]) for reading in memory} == {(False, "no GPU: this is a test")}
    fractions = [event.progress["fraction"] for event in events]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_the_same_seed_gives_the_same_pixels_and_another_does_not(bench: Bench) -> None:
    first, second, third = (bench.run(seed=seed)[0] for seed in (7, 7, 8))
    assert bench.pixels(first.id) == bench.pixels(second.id)
    assert bench.pixels(first.id) != bench.pixels(third.id)


def test_without_a_seed_each_item_draws_its_own_and_keeps_it(bench: Bench) -> None:
    new, _ = bench.run(count=3)
    seeds = [row.seed for row in bench.artifacts(new.id)]
    assert len(set(seeds)) == 3
    with bench.engine.connect() as connection:
        kept = connection.execute(text("SELECT seed FROM items ORDER BY item_index")).scalars().all()
    assert list(kept) == seeds


def test_a_killed_runner_is_a_crash_with_its_exit_code_and_leaves_no_process(bench: Bench) -> None:
    new = bench.submit(count=20)
    claimed = bench.claim()

    def kill_once_it_draws() -> None:
        _wait(lambda: bench.artifacts(new.id))
        runner = _runner_of_this_process()
        assert runner is not None
        os.kill(runner.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_once_it_draws)
    killer.start()
    outcome = bench.supervise(claimed)
    killer.join()
    assert outcome.failure is not None
    assert (outcome.failure.code, outcome.failure.details["exit_code"]) == ("runner_crashed", -signal.SIGKILL)
    assert _runner_of_this_process() is None
    assert 1 <= len(bench.artifacts(new.id)) < 20
    assert EndingStore(engine=bench.engine).finalize(claimed.fence).failure == outcome.failure


def test_a_replaced_attempt_stops_itself_and_publishes_nothing_more(bench: Bench) -> None:
    new = bench.submit(count=100)
    claimed = bench.claim()
    published: list[int] = []

    def replace_once_it_draws() -> None:
        _wait(lambda: bench.artifacts(new.id))
        with bench.engine.begin() as connection:
            connection.execute(text("UPDATE steps SET lease_token = gen_random_uuid(), attempt = attempt + 1"))
        published.append(len(bench.artifacts(new.id)))

    thief = threading.Thread(target=replace_once_it_draws)
    thief.start()
    with pytest.raises(LeaseLost):
        bench.supervise(claimed)
    thief.join()
    assert len(bench.artifacts(new.id)) == published[0]
    assert _runner_of_this_process() is None


def test_a_second_attempt_makes_only_what_is_missing_with_the_seeds_that_were_begun(bench: Bench) -> None:
    whole, _ = bench.run(count=3, seed=5)
    new = bench.submit(count=3, seed=5)
    claimed = bench.claim()
    with bench.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO artifacts SELECT gen_random_uuid(), :job, :step, 1, 9, now(), format, width, height, seed,"
                " 'kept', size_bytes, checksum, metadata_json, NULL, 1 FROM artifacts WHERE item_index = 1"
            ),
            {"job": new.id, "step": new.step_ids[0]},
        )
        connection.execute(
            text("UPDATE items SET seed = 77 WHERE step_id = :step AND item_index = 2"), {"step": new.step_ids[0]}
        )
    assert bench.supervise(claimed).failure is None
    rows = bench.artifacts(new.id)
    assert [(row.attempt, row.seed) for row in rows] == [(1, 5), (9, 6), (1, 77)]
    assert bench.pixels(whole.id)[0] == Image.open(io.BytesIO(bench.download(rows[0].s3_key))).tobytes()


def test_a_model_that_is_not_on_the_node_fails_the_step_with_its_code(bench: Bench) -> None:
    bench.model = a_model(bench.engine, local_path=str(bench.folder / "gone"))
    _, outcome = bench.run()
    assert outcome.failure is not None
    assert outcome.failure.code == "model_corrupt"


def test_a_step_over_its_time_limit_is_ended(bench: Bench) -> None:
    bench.submit(count=100, steps=50)
    outcome = bench.supervise(bench.claim(), step_timeout=6)
    assert outcome.failure is not None
    assert outcome.failure.code == "runner_timeout"
    assert _runner_of_this_process() is None


def test_a_time_limit_holds_while_an_upload_hangs(bench: Bench) -> None:
    new = bench.submit(count=50)
    claimed = bench.claim()
    with _frozen_store(bench, once=lambda: bench.artifacts(new.id)):
        began = time.monotonic()
        outcome = bench.supervise(claimed, step_timeout=10)
        assert time.monotonic() - began < 25
    assert outcome.failure is not None
    assert outcome.failure.code == "runner_timeout"
    assert _runner_of_this_process() is None


def test_a_store_that_takes_its_time_costs_nothing_but_time(bench: Bench) -> None:
    new = bench.submit(count=2)
    claimed = bench.claim()
    with _frozen_store(bench, once=lambda: bench.artifacts(new.id), seconds=12):
        assert bench.supervise(claimed).failure is None
    assert len(bench.artifacts(new.id)) == 2
    assert not [event for event in bench.jobs.events(new.id) if event.level == "warning"]


@contextmanager
def _frozen_store(bench: Bench, *, once: Callable[[], object], seconds: float = 60) -> Generator[None]:
    """Freeze the S3 server as soon as ``once`` holds, until the end of the block or for so many seconds."""
    server = bench.store.process
    assert server is not None
    over = threading.Event()

    def freeze() -> None:
        _wait(once)
        os.kill(server.pid, signal.SIGSTOP)
        over.wait(seconds)
        os.kill(server.pid, signal.SIGCONT)

    freezer = threading.Thread(target=freeze)
    freezer.start()
    try:
        yield
    finally:
        over.set()
        freezer.join()


def test_a_step_with_nothing_left_to_do_runs_nothing(bench: Bench) -> None:
    new = bench.submit()
    first = bench.claim()
    bench.supervise(first)
    with bench.engine.begin() as connection:
        connection.execute(text("UPDATE steps SET status = 'queued', outcome_json = NULL"))
    second = bench.claim()
    assert bench.supervise(second).failure is None
    assert EndingStore(engine=bench.engine).finalize(second.fence).status == "succeeded"
    assert [event.code for event in bench.jobs.events(new.id)].count("model.loading") == 1


def test_a_finished_step_that_is_put_back_has_succeeded_instead(bench: Bench) -> None:
    new = bench.submit()
    claimed = bench.claim()
    bench.supervise(claimed)
    ClaimStore(engine=bench.engine).put_back(claimed.fence, reason="dispatcher_stopped")
    assert bench.jobs.find(new.id).job.status == "succeeded"


def test_a_cancelled_step_is_stopped_within_seconds_and_what_was_finished_stays(bench: Bench) -> None:
    new = bench.submit(count=100, steps=40)
    claimed = bench.claim()
    asked_at: list[float] = []

    def cancel_once_it_draws() -> None:
        _wait(lambda: bench.artifacts(new.id))
        bench.jobs.cancel(new.id)
        asked_at.append(time.monotonic())

    canceller = threading.Thread(target=cancel_once_it_draws)
    canceller.start()
    outcome = bench.supervise(claimed)
    canceller.join()
    assert time.monotonic() - asked_at[0] < 5
    assert outcome.failure is not None
    assert outcome.failure.code == "cancelled"
    assert _runner_of_this_process() is None
    finished = len(bench.artifacts(new.id))
    assert 1 <= finished < 100
    EndingStore(engine=bench.engine).finalize(claimed.fence)
    record = bench.jobs.find(new.id)
    assert (record.job.status, record.job.items_done) == ("cancelled", finished)
    events = bench.jobs.events(new.id)
    assert [event.code for event in events[-2:]] == ["step.cancelled", "job.cancelled"]
    assert events[-1].payload["items_done"] == finished
    assert 0 < events[-1].payload["cancel_latency_ms"] < 5000
    # The memory was read again although nothing came of the step.
    assert [event.payload["phase"] for event in events if event.code == "gpu.memory"][-1] == "after"


def test_a_step_that_is_cancelled_before_it_begins_draws_nothing(bench: Bench) -> None:
    new = bench.submit(count=3)
    claimed = bench.claim()
    bench.jobs.cancel(new.id)
    outcome = bench.supervise(claimed)
    assert outcome.failure is not None
    assert outcome.failure.code == "cancelled"
    assert not [event for event in bench.jobs.events(new.id) if event.code == "item.started"]


def test_a_step_that_draws_everything_first_has_succeeded(bench: Bench) -> None:
    new = bench.submit()
    claimed = bench.claim()
    assert bench.supervise(claimed).failure is None
    bench.jobs.cancel(new.id)
    EndingStore(engine=bench.engine).finalize(claimed.fence)
    assert bench.jobs.find(new.id).job.status == "succeeded"


def test_the_cancel_flag_is_read_between_two_renewals_of_the_lease(bench: Bench) -> None:
    new = bench.submit()
    claimed = bench.claim()
    attempt = AttemptStore(engine=bench.engine, fence=claimed.fence)
    with LeaseKeeper(attempt=attempt, lease_seconds=60, renew_seconds=3600) as lease:
        renewed = bench.lease_expires_at()
        lease.check()
        bench.jobs.cancel(new.id)
        began = time.monotonic()
        with pytest.raises(Cancelled):
            _until_it_raises(lease.check)
        assert time.monotonic() - began < 3
        assert bench.lease_expires_at() == renewed
    assert bench.jobs.find(new.id).steps[0].cancel_seen_at is not None


def test_the_lease_is_renewed_while_the_flag_is_read_and_after_it_was_seen(bench: Bench) -> None:
    new = bench.submit()
    attempt = AttemptStore(engine=bench.engine, fence=bench.claim().fence)
    with LeaseKeeper(attempt=attempt, lease_seconds=60, renew_seconds=0.7) as lease:
        for _ in range(2):
            before = bench.lease_expires_at()
            _wait(lambda before=before: bench.lease_expires_at() > before)
        bench.jobs.cancel(new.id)
        with pytest.raises(Cancelled):
            _until_it_raises(lease.check)
        before = bench.lease_expires_at()
        _wait(lambda: bench.lease_expires_at() > before)


def _until_it_raises(check: Callable[[], None]) -> None:
    def ask() -> bool:
        check()
        return False

    _wait(ask)


def test_the_runner_is_given_no_secret(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMFORGE_S3_SECRET_KEY", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    bench.submit(count=20)
    claimed = bench.claim()
    environments: list[dict[str, str]] = []

    def look() -> None:
        _wait(_runner_of_this_process)
        runner = _runner_of_this_process()
        assert runner is not None
        environments.append(runner.environ())

    looker = threading.Thread(target=look)
    looker.start()
    bench.supervise(claimed)
    looker.join()
    (environment,) = environments
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert not [name for name in environment if name.startswith(("DREAMFORGE_", "AWS_", "RAY_"))]
    assert "hunter2" not in environment.values()
