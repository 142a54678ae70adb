"""Whom the rescuer judges, and when."""

import uuid
from collections.abc import Collection
from dataclasses import dataclass, field

import pytest

from dreamforge.dispatch.rescue import Rescue
from dreamforge.errors import DatabaseUnavailable
from dreamforge.store.rescues import UnendableStep

LEASE = 30.0


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Postgres:
    """Answers or not; counts how often it was asked for what has lapsed. Its clock is `ahead` of the rescuer's."""

    clock: Clock
    ahead: float = 1_700_000_000.0
    is_away: bool = False
    loses_its_mind: bool = False
    asked: int = 0
    unendable: list[uuid.UUID] = field(default_factory=list[uuid.UUID])
    skipped: list[list[uuid.UUID]] = field(default_factory=list[list[uuid.UUID]])

    def now(self) -> float:
        if self.is_away:
            raise DatabaseUnavailable
        return self.clock.now + self.ahead

    def rescue_one(self, *, skip: Collection[uuid.UUID] = ()) -> object:
        self.asked += 1
        self.skipped.append(list(skip))
        if self.loses_its_mind:
            raise DatabaseUnavailable
        for step_id in self.unendable:
            if step_id not in skip:
                raise UnendableStep(step_id)
        return None


def _turns(rescue: Rescue, clock: Clock, *, seconds: float, every: float = 5.0) -> None:
    for _ in range(round(seconds / every)):
        clock.now += every
        rescue.once()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def postgres(clock: Clock) -> Postgres:
    return Postgres(clock)


@pytest.fixture
def rescue(postgres: Postgres, clock: Clock) -> Rescue:
    return Rescue(store=postgres, lease_seconds=LEASE, clock=clock)  # pyright: ignore[reportArgumentType] - a double


def test_nobody_is_judged_before_a_whole_lease_of_being_connected(
    rescue: Rescue, postgres: Postgres, clock: Clock
) -> None:
    rescue.once()
    _turns(rescue, clock, seconds=25)
    assert postgres.asked == 0
    _turns(rescue, clock, seconds=5)
    assert postgres.asked == 1


def test_an_absence_of_the_database_begins_the_time_anew(rescue: Rescue, postgres: Postgres, clock: Clock) -> None:
    rescue.once()
    _turns(rescue, clock, seconds=60)
    before = postgres.asked
    postgres.is_away = True
    with pytest.raises(DatabaseUnavailable):
        rescue.once()
    postgres.is_away = False
    _turns(rescue, clock, seconds=30)
    assert postgres.asked == before
    _turns(rescue, clock, seconds=5)
    assert postgres.asked == before + 1


def test_so_does_a_time_in_which_the_rescuer_itself_stood_still(
    rescue: Rescue, postgres: Postgres, clock: Clock
) -> None:
    rescue.once()
    _turns(rescue, clock, seconds=60)
    before = postgres.asked
    clock.now += 300
    rescue.once()
    assert postgres.asked == before
    _turns(rescue, clock, seconds=30)
    assert postgres.asked == before + 1


@pytest.mark.parametrize("jump", [300.0, -300.0])
def test_so_does_a_jump_of_the_database_s_clock_by_which_leases_run(
    rescue: Rescue, postgres: Postgres, clock: Clock, jump: float
) -> None:
    # As on a machine that slept: our clock slept with it.
    rescue.once()
    _turns(rescue, clock, seconds=60)
    before = postgres.asked
    postgres.ahead += jump
    _turns(rescue, clock, seconds=30)
    assert postgres.asked == before
    _turns(rescue, clock, seconds=5)
    assert postgres.asked == before + 1


def test_so_does_an_absence_that_is_noticed_while_it_rescues(rescue: Rescue, postgres: Postgres, clock: Clock) -> None:
    rescue.once()
    _turns(rescue, clock, seconds=25)
    postgres.loses_its_mind = True
    clock.now += 5
    with pytest.raises(DatabaseUnavailable):
        rescue.once()
    postgres.loses_its_mind = False
    _turns(rescue, clock, seconds=30)
    assert postgres.asked == 1
    _turns(rescue, clock, seconds=5)
    assert postgres.asked == 2


def test_a_step_that_cannot_be_ended_is_in_nobody_s_way(rescue: Rescue, postgres: Postgres, clock: Clock) -> None:
    postgres.unendable = [uuid.uuid4(), uuid.uuid4()]
    rescue.once()
    _turns(rescue, clock, seconds=30)
    assert [len(skip) for skip in postgres.skipped] == [0, 1, 2]
    _turns(rescue, clock, seconds=5)
    assert postgres.skipped[3] == [], "it is tried again at the next turn"
