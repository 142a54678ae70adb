"""What ends a step, and when."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import pytest

from dreamforge.errors import Cancelled, LeaseLost, RunnerTimeout
from dreamforge.worker.halt import Halt
from dreamforge.worker.lease import LeaseKeeper


@dataclass
class Lease:
    is_cancelled: bool = False
    is_lost: bool = False
    prolonged: int = 0

    def check(self) -> None:
        if self.is_lost:
            raise LeaseLost

    def prolong(self) -> None:
        self.prolonged += 1


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lease() -> Lease:
    return Lease()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def halt(lease: Lease, clock: Clock) -> Halt:
    return Halt(lease=cast("LeaseKeeper", lease), time_limit=60, cancel_grace=10, clock=clock)


def _raises(check: Callable[[], None]) -> type[Exception] | None:
    try:
        check()
    except Exception as error:  # noqa: BLE001 - it is what is asked for
        return type(error)
    return None


def test_a_step_ends_at_its_time_limit(halt: Halt, clock: Clock) -> None:
    clock.now += 59.9
    assert _raises(halt.check) is None
    clock.now += 0.1
    with pytest.raises(RunnerTimeout) as caught:
        halt.check()
    assert caught.value.details == {"seconds": 60}


def test_a_cancel_is_told_first_and_enforced_when_its_grace_is_over(halt: Halt, lease: Lease, clock: Clock) -> None:
    assert not halt.must_stop
    lease.is_cancelled = True
    clock.now += 5
    assert halt.must_stop
    clock.now += 9.9
    assert _raises(halt.check) is None
    clock.now += 0.1
    assert _raises(halt.check) is Cancelled


def test_the_grace_begins_when_the_cancel_is_seen(halt: Halt, lease: Lease, clock: Clock) -> None:
    clock.now += 30
    lease.is_cancelled = True
    assert _raises(halt.check) is None
    clock.now += 10
    assert _raises(halt.check) is Cancelled


def test_nobody_has_to_be_told_while_no_runner_works(halt: Halt, lease: Lease) -> None:
    assert _raises(halt.check_idle) is None
    lease.is_cancelled = True
    assert _raises(halt.check_idle) is Cancelled


def test_a_lost_lease_goes_before_everything(halt: Halt, lease: Lease, clock: Clock) -> None:
    lease.is_lost = lease.is_cancelled = True
    clock.now += 100
    assert _raises(halt.check) is LeaseLost


def test_without_any_grace_a_cancel_ends_the_step_at_once(lease: Lease, clock: Clock) -> None:
    halt = Halt(lease=cast("LeaseKeeper", lease), time_limit=60, cancel_grace=0, clock=clock)
    lease.is_cancelled = True
    assert _raises(halt.check) is Cancelled


def test_the_time_limit_rests_while_models_are_on_their_way(halt: Halt, lease: Lease, clock: Clock) -> None:
    clock.now += 50
    with halt.uncounted():
        clock.now += 5000
        assert _raises(halt.check) is None
    assert lease.prolonged == 1, "and the lease lasts for as long as that gets on"
    clock.now += 9.9
    assert _raises(halt.check) is None
    assert lease.prolonged == 1
    clock.now += 0.1
    assert _raises(halt.check) is RunnerTimeout


def test_a_cancel_ends_it_all_the_same(halt: Halt, lease: Lease) -> None:
    lease.is_cancelled = True
    with halt.uncounted():
        assert _raises(halt.check_idle) is Cancelled
