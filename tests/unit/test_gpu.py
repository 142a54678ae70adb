"""The GPU's memory around a step, over NVML's interface: there is no card here, so its functions are played."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from dreamforge.errors import Cancelled, GpuError
from dreamforge.jobs.events import GpuMemory, GpuMemoryLeaked, Level
from dreamforge.worker.gpu import BrokenGpu, GpuDevice, NoGpu, count_gpus, read_memory, visible_gpu
from dreamforge.worker.gpu_lock import gpu_lock
from dreamforge.worker.memory import MIB, MemoryWatch

FIRST, SECOND = "GPU-11111111", "GPU-22222222"


@dataclass
class Machine:
    """What NVML answers: cards by UUID, readings one after another (the last stays), the error of a call by name."""

    cards: list[str] = field(default_factory=lambda: [FIRST, SECOND])
    used: list[int] = field(default_factory=lambda: [100 * MIB])
    errors: dict[str, int] = field(default_factory=dict[str, int])
    opened: int = 0

    def call(self, name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            if name in self.errors:
                raise pynvml.NVMLError(self.errors[name])
            return answer(*arguments)

        return called

    def opens(self) -> None:
        self.opened += 1

    def closes(self) -> None:
        self.opened -= 1

    def by_index(self, index: int) -> str:
        if index >= len(self.cards):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self.cards[index]

    def by_uuid(self, uuid: bytes) -> str:
        if uuid.decode() not in self.cards:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid.decode()

    def memory(self, _: str) -> SimpleNamespace:
        return SimpleNamespace(used=self.used.pop(0) if len(self.used) > 1 else self.used[0], total=8192 * MIB)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    for name, answer in {
        "nvmlInit": machine.opens,
        "nvmlShutdown": machine.closes,
        "nvmlDeviceGetCount": lambda: len(machine.cards),
        "nvmlDeviceGetHandleByIndex": machine.by_index,
        "nvmlDeviceGetHandleByUUID": machine.by_uuid,
        "nvmlDeviceGetUUID": lambda handle: handle,
        "nvmlDeviceGetName": lambda _: b"a card of long ago, whose name is bytes",
        "nvmlDeviceGetMemoryInfo": machine.memory,
    }.items():
        monkeypatch.setattr(pynvml, name, machine.call(name, answer))
    return machine


@pytest.mark.parametrize(
    ("variable", "uuid"),
    [(None, FIRST), ("0", FIRST), ("1", SECOND), (" 1 ,0", SECOND), (SECOND, SECOND), (f"{SECOND},{FIRST}", SECOND)],
)
def test_the_gpu_is_the_first_that_the_variable_names(machine: Machine, variable: str | None, uuid: str) -> None:
    device = visible_gpu(variable)
    assert isinstance(device, GpuDevice)
    assert (device.uuid, device.name) == (uuid, "a card of long ago, whose name is bytes")
    assert machine.opened == 0


@pytest.mark.parametrize("variable", ["", "-1", "NoDevFiles"])
def test_a_variable_that_names_none_means_none(machine: Machine, variable: str) -> None:
    assert isinstance(visible_gpu(variable), NoGpu)
    assert machine.opened == 0


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_a_machine_without_a_driver_has_none(machine: Machine, error: int) -> None:
    machine.errors["nvmlInit"] = error
    assert isinstance(visible_gpu("0"), NoGpu)
    assert count_gpus() == 0


def test_a_driver_without_a_card_means_none(machine: Machine) -> None:
    machine.cards = []
    assert isinstance(visible_gpu("0"), NoGpu)
    assert count_gpus() == 0


@pytest.mark.parametrize("variable", ["2", "GPU-33333333"])
def test_a_card_that_was_named_and_is_not_there_is_broken(machine: Machine, variable: str) -> None:
    gpu = visible_gpu(variable)
    assert isinstance(gpu, BrokenGpu)
    assert variable in gpu.reason
    assert machine.opened == 0


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, pynvml.NVML_ERROR_GPU_IS_LOST])
def test_a_failing_driver_is_broken_and_a_step_for_it_fails_instead_of_using_the_cpu(
    machine: Machine, error: int
) -> None:
    machine.errors["nvmlInit"] = error
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


def _watch(*, settle_seconds: float = 5.0) -> MemoryWatch:
    return MemoryWatch(gpu=visible_gpu("0"), settle_seconds=settle_seconds, tolerance_mib=64)


def test_readings_before_at_the_peak_and_after(machine: Machine) -> None:
    machine.used = [100 * MIB, 164 * MIB]
    watch = _watch()
    before = watch.before()
    watch.note_peak(3000 * MIB)
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


def test_memory_that_comes_back_late_is_waited_for(machine: Machine) -> None:
    machine.used = [100 * MIB, 5000 * MIB, 2000 * MIB, 165 * MIB, 120 * MIB, 999 * MIB]
    watch = _watch()
    watch.before()
    _, after = watch.after()
    assert type(after) is GpuMemory
    assert after.used_bytes == 120 * MIB


def test_memory_that_stays_is_reported_as_leaked(machine: Machine) -> None:
    machine.used = [100 * MIB, 165 * MIB]
    watch = _watch(settle_seconds=0.3)
    watch.before()
    _, after = watch.after()
    assert isinstance(after, GpuMemoryLeaked)
    assert after.level is Level.ERROR
    assert after.payload()["error_code"] == "gpu_memory_leaked"
    assert watch.figures()["gpu_mem_used_after"] == 165 * MIB


def test_a_card_that_is_lost_during_the_step_does_not_change_how_the_step_ended(machine: Machine) -> None:
    watch = _watch()
    watch.before()
    machine.errors["nvmlDeviceGetMemoryInfo"] = pynvml.NVML_ERROR_GPU_IS_LOST
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
