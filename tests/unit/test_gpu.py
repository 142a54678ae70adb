"""The GPU's memory around a step, by NVML: there is no card here, so its library is played."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest

from dreamforge.errors import Cancelled, GpuError
from dreamforge.jobs.events import GpuMemory, GpuMemoryLeaked, Level
from dreamforge.worker.gpu import BrokenGpu, GpuDevice, NoGpu, count_gpus, read_memory, visible_gpu
from dreamforge.worker.gpu_lock import gpu_lock
from dreamforge.worker.memory import MIB, MemoryLevel, MemoryWatch
from tests.nvml.fake_nvml import NOT_AVAILABLE, Card, FakeMachine, Slice
from tests.service import wait_for

FIRST, SECOND = "GPU-11111111", "GPU-22222222"


@pytest.mark.parametrize(
    ("variable", "uuid"),
    [(None, FIRST), ("0", FIRST), ("1", SECOND), (" 1 ,0", SECOND), (SECOND, SECOND), (f"{SECOND},{FIRST}", SECOND)],
)
def test_the_gpu_is_the_first_that_the_variable_names(nvml: FakeMachine, variable: str | None, uuid: str) -> None:
    device = visible_gpu(variable)
    assert isinstance(device, GpuDevice)
    assert (device.uuid, device.name) == (uuid, "a card of nobody's")
    assert nvml.calls("nvmlInitWithFlags") == nvml.calls("nvmlShutdown") == 1


@pytest.mark.parametrize("variable", ["", "-1", "NoDevFiles"])
def test_a_variable_that_names_none_means_none(nvml: FakeMachine, variable: str) -> None:
    assert isinstance(visible_gpu(variable), NoGpu)
    assert nvml.calls("nvmlShutdown") == 1


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_a_machine_without_a_driver_has_none(nvml: FakeMachine, error: int) -> None:
    nvml.errors["nvmlInitWithFlags"] = error
    nvml.write()
    assert isinstance(visible_gpu("0"), NoGpu)
    assert count_gpus() == 0


def test_a_driver_without_a_card_means_none(nvml: FakeMachine) -> None:
    nvml.devices = []
    nvml.write()
    assert isinstance(visible_gpu("0"), NoGpu)
    assert count_gpus() == 0


@pytest.mark.parametrize("variable", ["2", "GPU-33333333"])
def test_a_card_that_was_named_and_is_not_there_is_broken(nvml: FakeMachine, variable: str) -> None:
    gpu = visible_gpu(variable)
    assert isinstance(gpu, BrokenGpu)
    assert variable in gpu.reason
    assert nvml.calls("nvmlShutdown") == 1


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, pynvml.NVML_ERROR_GPU_IS_LOST])
def test_a_failing_driver_is_broken_and_a_step_for_it_fails_instead_of_using_the_cpu(
    nvml: FakeMachine, error: int
) -> None:
    nvml.errors["nvmlInitWithFlags"] = error
    nvml.write()
    watch = MemoryWatch(gpu=visible_gpu("0"), settle_seconds=0, tolerance_mib=64)
    assert watch.torch_device == "cuda"
    with pytest.raises(GpuError):
        watch.before()


def test_this_machine_answers_one_way_or_the_other() -> None:
    found = count_gpus()
    gpu = visible_gpu(None)
    assert isinstance(gpu, GpuDevice) == (found > 0)
    if isinstance(gpu, GpuDevice):
        assert 0 <= read_memory(gpu).used_bytes <= read_memory(gpu).total_bytes


def _watch(*, settle_seconds: float = 5.0, is_other: Callable[[int], bool] = lambda _: False) -> MemoryWatch:
    return MemoryWatch(gpu=visible_gpu("0"), settle_seconds=settle_seconds, tolerance_mib=64, is_other=is_other)


def test_readings_before_at_the_peak_and_after(nvml: FakeMachine) -> None:
    watch = _watch()
    before = watch.before()
    watch.note_peak(3000 * MIB)
    _use(nvml, 164)
    peak, after = watch.after()
    assert [event.phase for event in (before, peak, after)] == ["before", "peak", "after"]
    assert [event.used_bytes for event in (before, peak, after)] == [100 * MIB, 3000 * MIB, 164 * MIB]
    assert all(event.available and event.gpu_uuid == FIRST for event in (before, peak, after))
    assert (before.total_bytes, before.level) == (8192 * MIB, Level.INFO)
    assert watch.figures() == {
        "gpu_uuid": FIRST,
        "gpu_mem_used_before": 100 * MIB,
        "peak_gpu_mem_used": 3000 * MIB,
        "gpu_mem_used_after": 164 * MIB,
    }


def _use(nvml: FakeMachine, used: int, *, processes: dict[int, int] | None = None) -> None:
    nvml.devices[0].used = used
    nvml.devices[0].processes = processes or {}
    nvml.write()


def test_memory_that_comes_back_late_is_waited_for(nvml: FakeMachine) -> None:
    watch = _watch(settle_seconds=30)
    watch.before()
    _use(nvml, 5000)
    before = nvml.calls("nvmlDeviceGetMemoryInfo")

    def give_back() -> None:
        wait_for(lambda: nvml.calls("nvmlDeviceGetMemoryInfo") >= before + 3)
        _use(nvml, 120)

    giver = threading.Thread(target=give_back)
    giver.start()
    _, after = watch.after()
    giver.join()
    assert type(after) is GpuMemory
    assert after.used_bytes == 120 * MIB


def test_memory_that_stays_is_reported_as_leaked(nvml: FakeMachine) -> None:
    watch = _watch(settle_seconds=0.3)
    watch.before()
    _use(nvml, 165)
    _, after = watch.after()
    assert isinstance(after, GpuMemoryLeaked)
    assert after.level is Level.ERROR
    assert after.payload()["error_code"] == "gpu_memory_leaked"
    assert watch.figures()["gpu_mem_used_after"] == 165 * MIB
    assert watch.has_leaked


def test_what_others_take_meanwhile_is_not_ours(nvml: FakeMachine) -> None:
    _use(nvml, 600, processes={4711: 500})
    watch = _watch(settle_seconds=0.3, is_other=lambda pid: pid == 4712)
    assert watch.before().others_bytes == 500 * MIB
    # One that was there before takes more, another one comes.
    _use(nvml, 2600, processes={4711: 1500, 4712: 1000})
    _, after = watch.after()
    assert type(after) is GpuMemory
    assert after.others_bytes == 2500 * MIB
    assert watch.level == MemoryLevel(everybody=600 * MIB, own=100 * MIB)


def test_what_a_process_of_ours_still_holds_is(nvml: FakeMachine) -> None:
    watch = _watch(settle_seconds=0.3, is_other=lambda _: False)
    watch.before()
    _use(nvml, 1100, processes={4713: 1000})
    _, after = watch.after()
    assert isinstance(after, GpuMemoryLeaked)
    assert after.others_bytes == 0


def test_where_the_driver_does_not_tell_whose_it_is_all_counts(nvml: FakeMachine) -> None:
    _use(nvml, 600, processes={4711: 500})
    watch = _watch(settle_seconds=0.3)
    watch.before()
    _use(nvml, 620, processes={4711: NOT_AVAILABLE})
    assert type(watch.after()[1]) is GpuMemory
    _use(nvml, 700, processes={4711: NOT_AVAILABLE})
    assert isinstance(watch.after()[1], GpuMemoryLeaked)


@pytest.mark.parametrize(
    ("variable", "uuid"),
    [(None, "MIG-1a"), ("0", "MIG-1a"), (FIRST, "MIG-1a"), ("MIG-1b", "MIG-1b"), ("GPU-2", SECOND), ("1", SECOND)],
)
def test_of_a_card_in_slices_the_one_that_cuda_takes_is_measured(
    nvml: FakeMachine, variable: str | None, uuid: str
) -> None:
    nvml.devices = [
        Card(FIRST, mig=True, used=4000),
        Card(SECOND, mig=False, used=50),
        Slice("MIG-1a", FIRST, used=11),
        Slice("MIG-1b", FIRST, used=12),
    ]
    nvml.write()
    device = visible_gpu(variable)
    assert isinstance(device, GpuDevice)
    assert device.uuid == uuid
    assert read_memory(device).used_bytes == {"MIG-1a": 11, "MIG-1b": 12, SECOND: 50}[uuid] * MIB


def test_a_card_that_is_to_be_cut_and_has_no_slices_is_broken(nvml: FakeMachine) -> None:
    nvml.devices = [Card(FIRST, mig=True)]
    nvml.write()
    assert isinstance(visible_gpu("0"), BrokenGpu)


def test_the_beginning_of_a_uuid_that_two_cards_share_names_neither(nvml: FakeMachine) -> None:
    assert isinstance(visible_gpu("GPU-"), BrokenGpu)
    assert nvml.calls("nvmlShutdown") == 1


def test_a_card_that_is_lost_during_the_step_does_not_change_how_the_step_ended(nvml: FakeMachine) -> None:
    watch = _watch()
    watch.before()
    nvml.errors["nvmlDeviceGetMemoryInfo"] = pynvml.NVML_ERROR_GPU_IS_LOST
    nvml.write()
    _, after = watch.after()
    assert (after.phase, after.available, after.gpu_uuid) == ("after", False, FIRST)
    assert after.message


def test_without_a_gpu_every_event_says_so() -> None:
    watch = MemoryWatch(gpu=NoGpu("no driver"), settle_seconds=5, tolerance_mib=64)
    events = [watch.before(), *watch.after()]
    assert [event.phase for event in events] == ["before", "peak", "after"]
    assert {(event.available, event.message, event.used_bytes) for event in events} == {
        (False, "no GPU: no driver", None)
    }
    assert (watch.torch_device, watch.gpu_uuid) == ("cpu", None)


def _hold_lock(folder: str, held: Any, release: Any) -> None:
    with gpu_lock(Path(folder), FIRST, timeout=5):
        held.set()
        release.wait(30)


def test_a_gpu_is_locked_for_one_supervisor_at_a_time(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    held, release = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold_lock, args=(str(tmp_path), held, release))
    other.start()
    try:
        assert held.wait(30)
        with pytest.raises(GpuError, match="still uses"), gpu_lock(tmp_path, FIRST, timeout=0.3):
            raise AssertionError("two held one lock")
        with gpu_lock(tmp_path, SECOND, timeout=0.3) as another:
            assert another is not None
        release.set()
        with gpu_lock(tmp_path, FIRST, timeout=30) as descriptor:
            assert descriptor is not None
    finally:
        release.set()
        other.join(30)
        other.close()


def test_an_orphan_that_inherited_the_lock_keeps_the_successor_waiting(tmp_path: Path) -> None:
    with gpu_lock(tmp_path, FIRST, timeout=1) as descriptor:
        assert descriptor is not None
        orphan = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=(descriptor,)
        )
    with orphan:
        with pytest.raises(GpuError), gpu_lock(tmp_path, FIRST, timeout=0.3):
            raise AssertionError("the orphan still has the card")
        orphan.communicate(timeout=20)
        with gpu_lock(tmp_path, FIRST, timeout=5) as descriptor:
            assert os.get_inheritable(descriptor or -1) is False


def test_a_cancelled_step_does_not_wait_for_the_lock(tmp_path: Path) -> None:
    def cancelled() -> None:
        raise Cancelled

    with gpu_lock(tmp_path, FIRST, timeout=1):
        began = time.monotonic()
        with pytest.raises(Cancelled), gpu_lock(tmp_path, FIRST, timeout=60, check=cancelled):
            raise AssertionError("two held one lock")
        assert time.monotonic() - began < 5


def test_without_a_gpu_there_is_nothing_to_lock(tmp_path: Path) -> None:
    with gpu_lock(tmp_path, None, timeout=0) as descriptor:
        assert descriptor is None
    assert not list(tmp_path.iterdir())
