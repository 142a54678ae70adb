"""A real GPU: what its memory was before and after a step, and every rung of the ladder on it."""

import json
import os

import pytest
from sqlalchemy import text

from dreamforge.jobs.memory_ladder import LAST_RUNG, savings
from dreamforge.worker.gpu import GpuDevice, visible_gpu
from dreamforge.worker.memory import MemoryWatch
from tests.figures import Tell
from tests.integration.bench import Bench

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

TOLERANCE_MIB = 64


@pytest.fixture
def gpu() -> GpuDevice:
    """The first one."""
    found = visible_gpu(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if not isinstance(found, GpuDevice):
        pytest.skip(f"it takes an NVIDIA GPU: {found.reason}")
    return found


@pytest.mark.parametrize("rung", range(LAST_RUNG + 1))
def test_its_memory_comes_back_after_a_step_on_every_rung(bench: Bench, gpu: GpuDevice, rung: int, tell: Tell) -> None:
    new = bench.submit(seed=5, width=256, height=256, options={"oom_policy": "degrade"})
    with bench.engine.begin() as connection:
        connection.execute(text("UPDATE steps SET metadata_json = :held"), {"held": json.dumps({"rung": rung})})
    memory = MemoryWatch(gpu=gpu, settle_seconds=10, tolerance_mib=TOLERANCE_MIB)
    assert bench.supervise(bench.claim(), memory=memory).failure is None
    (row,) = bench.artifacts(new.id)
    assert row.metadata_json["memory_savings"] == list(savings(rung))
    events = {
        event.payload["phase"]: event.payload for event in bench.jobs.events(new.id) if event.code == "gpu.memory"
    }
    assert {payload["gpu_uuid"] for payload in events.values()} == {gpu.uuid}
    assert events["peak"]["used_bytes"] > 0
    assert not memory.has_leaked
    mib = {phase: payload["used_bytes"] / 2**20 for phase, payload in events.items()}
    tell(
        f"{gpu.name}, {', '.join(savings(rung)) or 'nothing saved'}",
        before_mib=mib["before"],
        peak_mib=mib["peak"],
        after_mib=mib["after"],
    )
