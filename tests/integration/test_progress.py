"""Progress of a job and its images, as an attempt gets on."""

import uuid
from typing import Any

from sqlalchemy import Engine
from uuid6 import uuid7

from dreamforge.jobs.events import ItemProgress, ItemStarted
from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.store.attempts import AttemptStore, NewArtifact
from dreamforge.store.endings import EndingStore
from tests.integration.factories import claim
from tests.integration.live_api import Follower, LiveApi
from tests.web import web


def _artifact(index: int) -> NewArtifact:
    return NewArtifact(
        id=uuid7(), item_index=index, format="png", width=64, height=64, seed=index + 7, s3_key=f"k/{uuid.uuid4()}",
        size_bytes=1, checksum="ab" * 32, metadata={}, timings={},
    )  # fmt: skip


def _items(progress: dict[str, Any]) -> list[tuple[str, float, str | None, int | None]]:
    return [(item["status"], item["fraction"], item["stage"], item["seed"]) for item in progress["items"]]


def test_progress_is_told_of_the_job_and_of_each_image(api: LiveApi, engine: Engine) -> None:
    job = api.post(count=3, params={"prompt": "a fox"}).json()
    path = job["links"]["progress"]
    waiting = api.get(path).json()
    assert (waiting["job_id"], waiting["status"], waiting["stage"], waiting["last_seq"]) == (
        job["id"],
        "queued",
        None,
        1,
    )
    assert _items(waiting) == [("pending", 0.0, None, None)] * 3
    claimed = claim(engine)
    assert claimed is not None
    attempt = AttemptStore(engine=engine, fence=claimed.fence)
    attempt.begin_item(ItemStarted(item_index=0, seed=7))
    published = _artifact(0)
    attempt.publish(published)
    attempt.begin_item(ItemStarted(item_index=1, seed=8))
    attempt.record_progress(ItemProgress(item_index=1, stage="denoise", stage_progress=0.5, progress=0.46))
    running = api.get(path).json()
    assert (running["status"], running["items_done"], running["items_total"], running["stage"]) == (
        "running", 1, 3, "denoise",
    )  # fmt: skip
    assert running["fraction"] == round(1.46 / 3, 4)
    assert 0 <= running["eta_seconds"] < 60, "two images more, as long as the one that was drawn"
    assert _items(running) == [
        ("succeeded", 1.0, "save", 7), ("running", 0.46, "denoise", 8), ("pending", 0.0, None, None),
    ]  # fmt: skip
    assert [item["artifact_id"] for item in running["items"]] == [str(published.id), None, None]
    assert [item["step"] for item in running["items"]] == ["generate"] * 3
    # A second attempt begins the image again: nothing goes down.
    attempt.record_progress(ItemProgress(item_index=1, stage="encode_prompt", stage_progress=0.5, progress=0.01))
    again = api.get(path).json()
    assert (again["fraction"], again["items"][1]["fraction"]) == (running["fraction"], 0.46)
    assert again["last_seq"] == running["last_seq"] + 1


def test_images_that_nobody_goes_on_with_are_what_their_step_is(api: LiveApi, engine: Engine) -> None:
    job = api.post(count=2, params={"prompt": "a fox"}).json()
    claimed = claim(engine)
    assert claimed is not None
    attempt = AttemptStore(engine=engine, fence=claimed.fence)
    attempt.begin_item(ItemStarted(item_index=0, seed=7))
    attempt.publish(_artifact(0))
    attempt.begin_item(ItemStarted(item_index=1, seed=8))
    attempt.record_progress(ItemProgress(item_index=1, stage="denoise", stage_progress=0.5, progress=0.46))
    attempt.report(Outcome(Failure("oom", "too large")), metadata={})
    EndingStore(engine=engine).finalize(claimed.fence)
    progress = api.get(job["links"]["progress"]).json()
    assert (progress["status"], progress["stage"], progress["fraction"]) == ("failed", None, 0.73)
    assert _items(progress) == [("succeeded", 1.0, "save", 7), ("failed", 0.46, "denoise", 8)]
    told = [event["progress"] for event in Follower(api.base_url + job["links"]["stream"]).wait().heard]
    for number in ("fraction", "items_done"):
        assert [one[number] for one in told] == sorted(one[number] for one in told)
    assert told[0] == {"fraction": 0.0, "items_done": 0, "items_total": 2}
    assert told[-1] == {"fraction": 0.73, "items_done": 1, "items_total": 2}


def test_a_cancelled_job_s_images_are_cancelled(api: LiveApi) -> None:
    job = api.post(count=2, params={"prompt": "a fox"}).json()
    web.post(api.base_url + job["links"]["cancel"]).raise_for_status()
    assert [item["status"] for item in api.get(job["links"]["progress"]).json()["items"]] == ["cancelled"] * 2
