"""One step under its supervisor: a real runner, a real Postgres, a real S3."""

import hashlib
import io
import os
import signal
import threading
import time
from pathlib import Path

import httpx2
import pytest
from PIL import Image
from sqlalchemy import text

from dreamforge.blobs import Blobs
from dreamforge.errors import LeaseLost
from dreamforge.images.manifest import ManifestModel, ManifestPreset
from dreamforge.images.reading import read_image
from dreamforge.jobs.events import ItemStarted
from dreamforge.jobs.retry import Budget
from dreamforge.store.attempts import AttemptStore, NewArtifact
from dreamforge.store.claims import ClaimStore
from dreamforge.store.endings import EndingStore
from dreamforge.worker.lease import LeaseKeeper
from tests import lora_files
from tests.integration.bench import Bench, files_of, runner_of_this_process, wait_for_savers
from tests.integration.factories import a_model
from tests.integration.rogue import rogue
from tests.service import wait_for

pytestmark = pytest.mark.timeout(180)


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
        manifest = read_image(data).manifest
        assert manifest is not None
        assert (manifest.seed, manifest.item_index, manifest.attempt) == (40 + index, index, 1)
        assert manifest.params == record.job.params_json
        assert manifest.params["prompt"] == "fog, täglich"
        assert (manifest.job_id, manifest.type) == (str(new.id), "generate")
        assert manifest.model == ManifestModel(bench.model.name, version="1", sha256="ab" * 32)
        assert manifest.preset == ManifestPreset("balanced", version=1)
        assert manifest.versions.keys() == {"dreamforge", "torch", "diffusers", "transformers", "python"}
        assert manifest.device == row.metadata_json["device"]
        assert row.s3_key.startswith(f"dreamforge/default/jobs/{new.id}/generate/")


@pytest.mark.parametrize(
    ("format", "extension"),
    [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")],
)
def test_images_are_stored_in_the_format_that_was_asked_for(bench: Bench, format: str, extension: str) -> None:
    new, outcome = bench.run(format=format, quality=30, width=72, height=64, seed=5, prompt="fog, 森")
    assert outcome.failure is None
    (row,) = bench.artifacts(new.id)
    assert (row.format, row.width, row.height) == (format, 72, 64)
    assert row.s3_key.endswith(f"_0_72x64_5.{extension}")
    read = read_image(bench.download(row.s3_key))
    assert (read.format, read.width, read.height) == (format, 72, 64)
    assert read.manifest is not None
    assert read.manifest.params["quality"] == 30
    assert read.parameters is not None
    assert read.parameters.startswith("fog, 森\nNegative prompt: \nSteps: ")


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
        wait_for(lambda: bench.artifacts(new.id))
        runner = runner_of_this_process()
        assert runner is not None
        os.kill(runner.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_once_it_draws)
    killer.start()
    outcome = bench.supervise(claimed)
    killer.join()
    assert outcome.failure is not None
    assert (outcome.failure.code, outcome.failure.details["exit_code"]) == ("runner_crashed", -signal.SIGKILL)
    assert runner_of_this_process() is None
    assert 1 <= len(bench.artifacts(new.id)) < 20
    retry = EndingStore(engine=bench.engine).finalize(claimed.fence).retry
    assert retry is not None
    assert (retry.budget, retry.failure) == (Budget.CRASHES, outcome.failure)


def test_a_replaced_attempt_stops_itself_and_publishes_nothing_more(bench: Bench) -> None:
    new = bench.submit(count=100)
    claimed = bench.claim()
    published: list[int] = []

    def replace_once_it_draws() -> None:
        wait_for(lambda: bench.artifacts(new.id))
        with bench.engine.begin() as connection:
            connection.execute(text("UPDATE steps SET lease_token = gen_random_uuid(), attempt = attempt + 1"))
        published.append(len(bench.artifacts(new.id)))

    thief = threading.Thread(target=replace_once_it_draws)
    thief.start()
    with pytest.raises(LeaseLost):
        bench.supervise(claimed)
    thief.join()
    assert len(bench.artifacts(new.id)) == published[0]
    assert runner_of_this_process() is None


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
            text("UPDATE items SET status = 'succeeded' WHERE step_id = :step AND item_index = 1"),
            {"step": new.step_ids[0]},
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
    assert outcome.failure.code == "model_not_installed"
    assert outcome.failure.details == {"model": f"{bench.model.name}@1", "node": "here", "node_id": "ray-here"}


def test_a_step_over_its_time_limit_is_ended(bench: Bench) -> None:
    bench.submit(count=100, steps=50)
    outcome = bench.supervise(bench.claim(), step_timeout=6)
    assert outcome.failure is not None
    assert outcome.failure.code == "runner_timeout"
    assert runner_of_this_process() is None


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
    ClaimStore(engine=bench.engine).put_back(claimed.fence)
    assert bench.jobs.find(new.id).job.status == "succeeded"


def test_a_cancelled_step_is_stopped_within_seconds_and_what_was_finished_stays(bench: Bench) -> None:
    new = bench.submit(count=100, steps=40)
    claimed = bench.claim()
    asked_at: list[float] = []

    def cancel_once_it_draws() -> None:
        wait_for(lambda: bench.artifacts(new.id))
        bench.jobs.cancel(new.id)
        asked_at.append(time.monotonic())

    canceller = threading.Thread(target=cancel_once_it_draws)
    canceller.start()
    outcome = bench.supervise(claimed)
    canceller.join()
    assert time.monotonic() - asked_at[0] < 5
    assert outcome.failure is not None
    assert outcome.failure.code == "cancelled"
    assert runner_of_this_process() is None
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
    with LeaseKeeper(attempt=attempt, lease_seconds=60, renew_seconds=3600, at_most=600) as lease:
        renewed = bench.lease_expires_at()
        lease.check()
        bench.jobs.cancel(new.id)
        wait_for(lambda: lease.is_cancelled, seconds=3, what="the flag")
        assert bench.lease_expires_at() == renewed
    assert bench.jobs.find(new.id).steps[0].cancel_seen_at is not None


def test_the_lease_is_renewed_while_the_flag_is_read_and_after_it_was_seen(bench: Bench) -> None:
    new = bench.submit()
    attempt = AttemptStore(engine=bench.engine, fence=bench.claim().fence)
    with LeaseKeeper(attempt=attempt, lease_seconds=60, renew_seconds=0.7, at_most=600) as lease:
        for _ in range(2):
            before = bench.lease_expires_at()
            wait_for(lambda before=before: bench.lease_expires_at() > before)
        bench.jobs.cancel(new.id)
        wait_for(lambda: lease.is_cancelled, what="the flag")
        before = bench.lease_expires_at()
        wait_for(lambda: bench.lease_expires_at() > before)


def test_a_lease_is_not_kept_for_whoever_stands_still_for_ever(bench: Bench) -> None:
    bench.submit()
    attempt = AttemptStore(engine=bench.engine, fence=bench.claim().fence)
    with LeaseKeeper(attempt=attempt, lease_seconds=60, renew_seconds=0.1, at_most=1.0):
        wait_for(lambda: not _keeps_leases(), seconds=10, what="the end of the renewals")
        left = bench.lease_expires_at()
        later = time.monotonic() + 0.5
        wait_for(lambda: time.monotonic() >= later, what="several periods")
        assert left == bench.lease_expires_at()


def _keeps_leases() -> bool:
    return any(thread.name == "lease" for thread in threading.enumerate())


def test_an_image_of_an_attempt_that_was_replaced_meanwhile_does_not_stay_in_the_store(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []
    publish = AttemptStore.publish

    def replaced_first(self: AttemptStore, new: NewArtifact, *, number: int = 0) -> None:
        keys.append(new.s3_key)
        bench.download(new.s3_key)
        with bench.engine.begin() as connection:
            connection.execute(text("UPDATE steps SET lease_token = gen_random_uuid()"))
        publish(self, new, number=number)

    monkeypatch.setattr(AttemptStore, "publish", replaced_first)
    new = bench.submit()
    with pytest.raises(LeaseLost):
        bench.supervise(bench.claim(), runner=rogue("draw"))
    wait_for_savers()
    assert len(keys) == 1
    with pytest.raises(httpx2.HTTPStatusError):
        bench.download(keys[0])
    assert bench.artifacts(new.id) == []


def test_one_that_was_replaced_while_it_stood_still_uploads_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads: list[str] = []
    monkeypatch.setattr(Blobs, "put", lambda _self, key, _data, **_: uploads.append(key))
    ask = AttemptStore.begin_item

    def replaced_first(self: AttemptStore, event: ItemStarted, *, stage: str, number: int = 0) -> None:
        ask(self, event, stage=stage, number=number)
        with bench.engine.begin() as connection:
            connection.execute(text("UPDATE steps SET lease_token = gen_random_uuid()"))

    monkeypatch.setattr(AttemptStore, "begin_item", replaced_first)
    # As if it had slept: nobody tells it.
    monkeypatch.setattr(LeaseKeeper, "check", lambda _: None)
    bench.submit()
    with pytest.raises(LeaseLost):
        bench.supervise(bench.claim(), runner=rogue("draw"))
    wait_for_savers()
    assert uploads == []


def test_the_runner_is_given_no_secret(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMFORGE_S3_SECRET_KEY", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    bench.submit(count=20)
    claimed = bench.claim()
    environments: list[dict[str, str]] = []

    def look() -> None:
        wait_for(runner_of_this_process)
        runner = runner_of_this_process()
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


def test_a_job_of_an_older_version_is_drawn_with_what_it_says(bench: Bench) -> None:
    new = bench.submit(seed=5)
    with bench.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE jobs SET params_json = params_json - ARRAY['loras', 'vae', 'quality', 'format']"
                ' || \'{"preset": "of old"}\''
            )
        )
    assert bench.supervise(bench.claim(), runner=rogue("draw")).failure is None
    (row,) = bench.artifacts(new.id)
    assert (row.format, row.metadata_json["preset"]) == ("png", {"name": "balanced", "version": 1})


def test_a_lora_that_finds_no_place_in_the_model_ends_the_step_and_is_named(bench: Bench, tmp_path: Path) -> None:
    assert bench.model.local_path
    layers = lora_files.layers_for(Path(bench.model.local_path))
    file = lora_files.write_kohya(layers, tmp_path / "deep.safetensors", rename={"layers_2": "layers_9"})
    a_model(bench.engine, name="deep", kind="lora", local_path=str(file), files=files_of(file))
    _, outcome = bench.run(loras=[{"id": "deep@1", "weight": 1.0}])
    assert outcome.failure is not None
    assert (outcome.failure.code, outcome.failure.details["lora"]) == ("model_incompatible", "deep")
