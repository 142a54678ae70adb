"""A GPU whose memory does not come back is kept from everybody until it has."""

import json
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from dreamforge.store.claims import Claim, ClaimStore
from dreamforge.store.endings import EndingStore
from dreamforge.worker.gpu import visible_gpu
from dreamforge.worker.memory import MemoryWatch
from tests.integration.bench import Bench
from tests.integration.rogue import rogue
from tests.nvml.fake_nvml import MIB, FakeMachine
from tests.service import wait_for

pytestmark = pytest.mark.timeout(120)

GPU = "GPU-11111111"


@pytest.fixture(autouse=True)
def no_heartbeats(bench: Bench) -> None:
    """Nobody has told anything yet."""
    with bench.engine.begin() as connection:
        connection.execute(text("TRUNCATE heartbeats"))


def _watch() -> MemoryWatch:
    return MemoryWatch(gpu=visible_gpu("0"), settle_seconds=0.5, tolerance_mib=64)


def _use(nvml: FakeMachine, used: int) -> None:
    nvml.devices[0].used = used
    nvml.write()


def _told(bench: Bench) -> dict[str, Any] | None:
    query = text("SELECT info_json FROM heartbeats WHERE id = :id AND kind = 'gpu'")
    with bench.engine.connect() as connection:
        return connection.scalar(query, {"id": f"gpu:{GPU}"})


def _is_healthy(bench: Bench) -> bool | None:
    told = _told(bench)
    return None if told is None else bool(told["is_healthy"])


@contextmanager
def _supervised(bench: Bench, claimed: Claim, *, deed: str = "draw") -> Generator[threading.Thread]:
    """A supervisor at work in a thread of its own, which must have ended with the block."""
    thread = threading.Thread(
        target=lambda: bench.supervise(claimed, runner=rogue(deed), memory=_watch()), name="supervisor"
    )
    thread.start()
    try:
        yield thread
    finally:
        thread.join(30)
        assert not thread.is_alive()


def test_figures_are_told_where_people_and_programs_look(bench: Bench, nvml: FakeMachine) -> None:
    new = bench.submit(seed=5)
    assert bench.supervise(bench.claim(), runner=rogue("draw"), memory=_watch()).failure is None
    figures = {"gpu_uuid": GPU, "gpu_mem_used_before": 100 * MIB, "gpu_mem_used_after": 100 * MIB}
    step = bench.jobs.find(new.id).steps[0].metadata_json
    assert step["memory"] == {**figures, "peak_gpu_mem_used": None}
    told = _told(bench)
    assert told is not None
    assert told.items() >= {**figures, "is_healthy": True}.items()
    assert nvml.calls("nvmlInitWithFlags") == nvml.calls("nvmlShutdown")


def test_a_leak_changes_nothing_about_its_step_and_keeps_the_gpu_until_it_is_clean(
    bench: Bench, nvml: FakeMachine
) -> None:
    # So many that they are not all drawn when the first one is seen.
    new = bench.submit(count=30, seed=5)
    claimed = bench.claim()
    with _supervised(bench, claimed) as supervisor:
        wait_for(lambda: bench.artifacts(new.id))
        _use(nvml, 2000)
        wait_for(lambda: _is_healthy(bench) is False, what="the finding")
        wait_for(lambda: _has_reported(bench, claimed), what="the report")
        assert EndingStore(engine=bench.engine).finalize(claimed.fence).status == "succeeded"
        assert supervisor.is_alive(), "it holds the GPU"
        assert (bench.folder / f"{GPU}.dirty").exists(), "the node remembers it"
        _use(nvml, 164)
    assert _is_healthy(bench)
    assert not (bench.folder / f"{GPU}.dirty").exists()
    leaked = [event for event in bench.jobs.events(new.id) if event.payload.get("error_code") == "gpu_memory_leaked"]
    assert [event.level for event in leaked] == ["error"]


def _has_reported(bench: Bench, claimed: Claim) -> bool:
    whereabouts = ClaimStore(engine=bench.engine).whereabouts(claimed.fence)
    return whereabouts is not None and whereabouts.has_reported


def test_a_step_that_meets_such_a_gpu_is_queued_again_and_not_charged(bench: Bench, nvml: FakeMachine) -> None:
    new = bench.submit(seed=5)
    claimed = bench.claim()
    _mark(bench, level=100)
    _use(nvml, 2000)
    with _supervised(bench, claimed, deed="exit_badly"):
        wait_for(lambda: _has_reported(bench, claimed), what="the report")
        verdict = EndingStore(engine=bench.engine).finalize(claimed.fence)
        assert verdict.status == "queued"
        _use(nvml, 100)
    (step,) = bench.jobs.find(new.id).steps
    assert (step.failures, step.crashes, step.rescues, step.next_attempt_at) == (0, 0, 0, None)
    rescued = bench.jobs.events(new.id)[-1]
    assert (rescued.code, rescued.payload["reason"]) == ("step.rescued", "gpu_memory_leaked")
    assert _is_healthy(bench)
    assert bench.supervise(bench.claim(), runner=rogue("draw"), memory=_watch()).failure is None


def test_one_that_has_become_clean_meanwhile_is_drawn_on(bench: Bench, nvml: FakeMachine) -> None:
    bench.submit(seed=5)
    _mark(bench, level=100)
    _use(nvml, 150)
    assert bench.supervise(bench.claim(), runner=rogue("draw"), memory=_watch()).failure is None
    assert _is_healthy(bench)


def _mark(bench: Bench, *, level: int, boot_id: str | None = None) -> Path:
    """As an earlier step leaves a GPU that is dirty."""
    mark = bench.folder / f"{GPU}.dirty"
    now = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    mark.write_text(json.dumps({"everybody": level * MIB, "own": None, "strangers": [], "boot_id": boot_id or now}))
    return mark


def test_a_mark_from_before_the_machine_s_start_means_nothing(bench: Bench, nvml: FakeMachine) -> None:
    bench.submit(seed=5)
    _mark(bench, level=100, boot_id="another")
    _use(nvml, 2000)
    assert bench.supervise(bench.claim(), runner=rogue("draw"), memory=_watch()).failure is None


def test_a_person_who_removes_the_mark_lets_the_gpu_go(bench: Bench, nvml: FakeMachine) -> None:
    bench.submit(seed=5)
    claimed = bench.claim()
    mark = _mark(bench, level=100)
    _use(nvml, 2000)
    with _supervised(bench, claimed):
        wait_for(lambda: _has_reported(bench, claimed), what="the report")
        mark.unlink()


def test_others_who_take_more_are_no_leak_as_long_as_they_can_be_told_apart(bench: Bench, nvml: FakeMachine) -> None:
    nvml.devices[0].processes = {os.getpid(): 50}
    nvml.write()
    new = bench.submit(count=30, seed=5)
    claimed = bench.claim()
    with _supervised(bench, claimed):
        wait_for(lambda: bench.artifacts(new.id))
        nvml.devices[0].processes = {os.getpid(): 1950}
        _use(nvml, 2000)
    assert _is_healthy(bench)
    assert not (bench.folder / f"{GPU}.dirty").exists()


def test_a_leak_while_it_degrades_leaves_the_rest_to_another_gpu(bench: Bench, nvml: FakeMachine) -> None:
    new = bench.submit(count=2, seed=5, options={"oom_policy": "degrade"})
    claimed = bench.claim()
    _use(nvml, 100)
    nvml.errors = {}
    with _supervised(bench, claimed, deed="run_out_of_memory"):
        wait_for(lambda: bench.artifacts(new.id))
        _use(nvml, 2000)
        wait_for(lambda: _has_reported(bench, claimed), what="the report")
        assert EndingStore(engine=bench.engine).finalize(claimed.fence).status == "queued"
        assert (bench.folder / f"{GPU}.dirty").exists()
        _use(nvml, 100)
    assert not (bench.folder / f"{GPU}.dirty").exists()
    assert bench.jobs.find(new.id).steps[0].metadata_json["rung"] >= 1, "the next attempt begins higher"
    codes = [event.code for event in bench.jobs.events(new.id)]
    assert codes.count("model.loaded") == codes.count("step.degraded"), "it did not climb on here"
