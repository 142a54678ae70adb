"""What a step is estimated to take is held against what is free on its GPU, before a process is started for it."""

import uuid
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from dreamforge.jobs.memory_ladder import LAST_RUNG, MODEL_OFFLOAD_RUNG, savings
from dreamforge.jobs.outcome import Outcome
from dreamforge.store.models import NewModelFile
from dreamforge.worker.gpu import visible_gpu
from dreamforge.worker.memory import MemoryWatch
from tests.integration.bench import Bench
from tests.integration.factories import a_model
from tests.integration.rogue import rogue
from tests.nvml.fake_nvml import MIB, FakeMachine

pytestmark = pytest.mark.timeout(120)

SDXL = (NewModelFile(path="sdxl.safetensors", size=6_938_000_000, sha256="ab" * 32),)
CARD = 16 * 1024


@pytest.fixture
def big(bench: Bench, nvml: FakeMachine) -> Bench:
    """A bench whose model is as large as SDXL, and whose first card is as large as it has to be."""
    nvml.devices[0].total = CARD
    path = bench.folder / SDXL[0].path
    with path.open("wb") as file:
        # Of holes: it takes no room.
        file.truncate(SDXL[0].size)
    bench.model = replace(a_model(bench.engine, local_path=str(path), files=SDXL), parameters_schema={})
    return bench


def _supervised(bench: Bench, nvml: FakeMachine, *, free: int, **job: Any) -> tuple[uuid.UUID, Outcome]:
    """One step of 512x512 on a card of which so many MiB are free, and how it ended."""
    nvml.devices[0].used = CARD - free
    nvml.write()
    new = bench.submit(width=512, height=512, **job)
    memory = MemoryWatch(gpu=visible_gpu("0"), settle_seconds=0.2, tolerance_mib=64)
    return new.id, bench.supervise(bench.claim(), runner=rogue("draw"), memory=memory)


def _payloads(bench: Bench, job_id: uuid.UUID, code: str) -> list[dict[str, Any]]:
    return [event.payload for event in bench.jobs.events(job_id) if event.code == code]


def test_a_step_that_fits_runs_as_it_is(big: Bench, nvml: FakeMachine) -> None:
    id, outcome = _supervised(big, nvml, free=CARD - 100)
    assert outcome.failure is None
    assert _payloads(big, id, "step.degraded") == []


def test_one_that_does_not_fit_fails_before_a_process_is_started_for_it(big: Bench, nvml: FakeMachine) -> None:
    id, outcome = _supervised(big, nvml, free=2048)
    failure = outcome.failure
    assert failure is not None
    assert failure.code == "oom"
    assert failure.details["estimated"] is True
    assert failure.details["free_bytes"] == 2048 * MIB
    assert failure.details["total_bytes"] == CARD * MIB
    assert failure.details["requested_bytes"] > 6 * 10**9
    assert 'Set options.oom_policy to "degrade": slower, with less memory.' in failure.suggestions
    assert _payloads(big, id, "model.loading") == []
    assert [event["phase"] for event in _payloads(big, id, "gpu.memory")] == ["before"]


def test_one_that_may_degrade_begins_on_the_first_rung_that_fits(big: Bench, nvml: FakeMachine) -> None:
    id, outcome = _supervised(big, nvml, free=6144, options={"oom_policy": "degrade"})
    assert outcome.failure is None
    (degraded,) = _payloads(big, id, "step.degraded")
    assert (degraded["rung"], tuple(degraded["savings"])) == (MODEL_OFFLOAD_RUNG, savings(MODEL_OFFLOAD_RUNG))
    assert degraded["error"]["details"]["estimated"] is True
    assert len(_payloads(big, id, "model.loaded")) == 1
    (row,) = big.artifacts(id)
    assert row.metadata_json["memory_savings"] == list(savings(MODEL_OFFLOAD_RUNG))


def test_one_that_fits_on_no_rung_fails_and_says_so_of_the_last(big: Bench, nvml: FakeMachine) -> None:
    _, outcome = _supervised(big, nvml, free=32, options={"oom_policy": "degrade"})
    assert outcome.failure is not None
    assert (outcome.failure.code, outcome.failure.details["rung"]) == ("oom", LAST_RUNG)


def test_low_vram_begins_where_models_take_turns(big: Bench, nvml: FakeMachine) -> None:
    id, outcome = _supervised(big, nvml, free=6144, preset="low_vram")
    assert outcome.failure is None
    assert _payloads(big, id, "step.degraded") == []
    (row,) = big.artifacts(id)
    assert row.metadata_json["preset"] == {"name": "low_vram", "version": 1}
    with big.engine.connect() as connection:
        step = connection.execute(text("SELECT metadata_json FROM steps WHERE job_id = :id"), {"id": id}).scalar_one()
    assert (step["preset"], step["preset_version"], step["batch_size"]) == ("low_vram", 1, 1)
    assert row.metadata_json["memory_savings"] == list(savings(MODEL_OFFLOAD_RUNG))


@pytest.mark.parametrize(("count", "sizes"), [(6, [4, 4, 4, 4, 2, 2]), (1, [1])])
def test_fast_draws_several_at_once_and_each_image_says_how_many(
    big: Bench, nvml: FakeMachine, count: int, sizes: list[int]
) -> None:
    id, outcome = _supervised(big, nvml, free=CARD - 100, preset="fast", count=count, seed=5)
    assert outcome.failure is None
    rows = big.artifacts(id)
    assert [row.metadata_json["batch_size"] for row in rows] == sizes
    assert [row.seed for row in rows] == list(range(5, 5 + count))
    started = [event["item_index"] for event in _payloads(big, id, "item.started")]
    assert started == list(range(count))
