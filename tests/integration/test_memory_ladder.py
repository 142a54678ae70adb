"""A step for which the GPU has too little memory."""

import json
from typing import Any

import pytest
from sqlalchemy import text

from dreamforge.images.reading import read_image
from dreamforge.jobs.memory_ladder import LAST_RUNG, savings
from dreamforge.store.endings import EndingStore
from tests.integration.absence import finalize_and_claim
from tests.integration.bench import Bench
from tests.integration.rogue import rogue

pytestmark = pytest.mark.timeout(180)

DETAILS = {"requested_bytes": 3 * 2**30, "free_bytes": 2**30, "total_bytes": 8 * 2**30, "peak_bytes": 7 * 2**30}


def _of(bench: Bench, job_id: Any, code: str) -> list[dict[str, Any]]:
    return [event.payload for event in bench.jobs.events(job_id) if event.code == code]


def test_it_fails_with_figures_and_advice_and_is_not_tried_again_as_it_is(bench: Bench) -> None:
    new = bench.submit(count=2, seed=5)
    claimed = bench.claim()
    failure = bench.supervise(claimed, runner=rogue("run_out_of_memory")).failure
    assert failure is not None
    assert failure.code == "oom"
    assert failure.details == {**DETAILS, "rung": 0, "savings": []}
    assert failure.suggestions == ["Smaller.", 'Set options.oom_policy to "degrade": slower, with less memory.']
    assert EndingStore(engine=bench.engine).finalize(claimed.fence).status == "failed"
    assert len(bench.artifacts(new.id)) == 1, "what was finished stays"


def test_degrading_tries_one_rung_after_the_other_each_in_a_process_of_its_own(bench: Bench) -> None:
    new = bench.submit(count=2, seed=5, options={"oom_policy": "degrade"})
    claimed = bench.claim()
    assert bench.supervise(claimed, runner=rogue("run_out_of_memory")).failure is None
    degraded = _of(bench, new.id, "step.degraded")
    assert [(event["rung"], tuple(event["savings"])) for event in degraded] == [
        (rung, savings(rung)) for rung in range(1, LAST_RUNG + 1)
    ]
    assert {event["error"]["code"] for event in degraded} == {"oom"}
    assert len(_of(bench, new.id, "model.loaded")) == LAST_RUNG + 1, "each rung has a process of its own"
    phases = [event["phase"] for event in _of(bench, new.id, "gpu.memory")]
    assert phases == ["before", "peak", "after"] * (LAST_RUNG + 1)
    first, second = bench.artifacts(new.id)
    assert (first.attempt, second.attempt) == (1, 1)
    assert (first.metadata_json["memory_savings"], second.metadata_json["memory_savings"]) == (
        [],
        list(savings(LAST_RUNG)),
    )
    manifest = read_image(bench.download(second.s3_key)).manifest
    assert manifest is not None
    assert (manifest.rung, manifest.memory_savings) == (LAST_RUNG, savings(LAST_RUNG))
    assert len(_of(bench, new.id, "item.finished")) == 2, "none was made twice"


def test_the_next_attempt_goes_on_where_the_last_one_had_got_to(bench: Bench) -> None:
    new = bench.submit(count=2, seed=5, options={"oom_policy": "degrade"})
    with bench.engine.begin() as connection:
        connection.execute(text("UPDATE steps SET metadata_json = :held"), {"held": json.dumps({"rung": 3})})
    claimed = bench.claim()
    failure = bench.supervise(claimed, runner=rogue("exit_badly", draws=0)).failure
    assert failure is not None
    again = finalize_and_claim(bench, claimed)
    assert bench.supervise(again, runner=rogue("run_out_of_memory")).failure is None
    assert [event["rung"] for event in _of(bench, new.id, "step.degraded")] == [4]


@pytest.mark.parametrize("rung", range(2, LAST_RUNG + 1))
def test_a_real_pipeline_draws_with_every_saving(bench: Bench, rung: int) -> None:
    new = bench.submit(seed=5, width=96, height=64, options={"oom_policy": "degrade"})
    with bench.engine.begin() as connection:
        connection.execute(text("UPDATE steps SET metadata_json = :held"), {"held": json.dumps({"rung": rung})})
    assert bench.supervise(bench.claim()).failure is None
    (row,) = bench.artifacts(new.id)
    assert (row.width, row.height, row.metadata_json["memory_savings"]) == (96, 64, list(savings(rung)))
