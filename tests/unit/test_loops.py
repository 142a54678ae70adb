"""The one shape of a background loop."""

import threading

import pytest

from dreamforge.dispatch.loops import Loop
from dreamforge.errors import DatabaseUnavailable


class Clock(threading.Event):
    """Time that passes where a loop waits. The loop is ended after so many waits."""

    def __init__(self, *, waits: int) -> None:
        super().__init__()
        self.waited: list[float] = []
        self._waits = waits

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout or 0.0)
        if len(self.waited) == self._waits:
            self.set()
        return True

    def monotonic(self) -> float:
        return sum(self.waited)


def _run(loop: Loop, monkeypatch: pytest.MonkeyPatch, *, waits: int) -> Clock:
    clock = Clock(waits=waits)
    monkeypatch.setattr("random.uniform", lambda _low, _high: 1.0)
    monkeypatch.setattr("dreamforge.dispatch.loops.time", clock)
    monkeypatch.setattr(loop, "_ending", clock)
    loop.start()
    loop.join(10)
    assert not loop.is_alive
    return clock


def test_it_tells_when_it_last_ended_well_and_goes_on_after_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    troubles = {2: DatabaseUnavailable(), 3: ValueError("a bug")}
    turns: list[float | None] = []

    def once() -> None:
        turns.append(loop.seconds_since)
        if len(turns) in troubles:
            raise troubles[len(turns)]

    loop = Loop(name="it", interval=1.0, once=once)
    _run(loop, monkeypatch, waits=5)
    # Trouble is no good end.
    assert turns == [None, 1.0, 3.0, 7.0, 1.0]


@pytest.mark.parametrize(
    ("interval", "pauses"),
    [(1.0, [2, 4, 5, 5, 1]), (5.0, [10, 10, 10, 10, 5]), (30.0, [60, 60, 60, 60, 30])],
)
def test_it_backs_off_while_a_dependency_is_away(
    interval: float, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[None] = []

    def once() -> None:
        turns.append(None)
        if len(turns) < 5:
            raise DatabaseUnavailable

    assert _run(Loop(name="it", interval=interval, once=once), monkeypatch, waits=5).waited == pauses
