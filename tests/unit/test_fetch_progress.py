"""Events of a model that is on its way: few, never back, and always the last."""

from dreamforge.jobs.events import ModelFetching
from dreamforge.worker.fetch_progress import FetchProgress


class _Told:
    """A clock that stands still, and what was told by it."""

    def __init__(self) -> None:
        self.events: list[ModelFetching] = []
        self.now = 0.0
        self.is_busy = False
        self.progress = FetchProgress(
            model="big@1",
            sizes={"a": 100, "b": 50},
            record=self.events.append,
            is_busy=lambda: self.is_busy,
            clock=lambda: self.now,
        )

    @property
    def bytes_done(self) -> list[int]:
        return [event.bytes_done for event in self.events]


def test_the_first_and_the_last_are_told_and_few_between() -> None:
    told = _Told()
    for done in range(101):
        told.progress.on_bytes("a", done, 100)
        told.now += 0.01
    told.progress.on_bytes("b", 50, 50)
    told.progress.end()
    assert told.bytes_done == [0, 50, 100, 150] or told.bytes_done[0] == 0
    assert told.bytes_done[-1] == 150
    assert len(told.events) <= 5
    first, last = told.events[0], told.events[-1]
    assert (first.model, first.origin, first.bytes_total, first.file) == ("big@1", "object_store", 150, "a")
    assert last.file is None or last.bytes_done == 150


def test_what_begins_anew_does_not_go_back() -> None:
    told = _Told()
    for done in (80, 0, 40, 90):
        told.now += 10
        told.progress.on_bytes("a", done, 100)
    assert told.bytes_done == [80, 90]


def test_while_nothing_can_be_written_only_the_last_waits_for_it() -> None:
    told = _Told()
    told.progress.on_bytes("a", 0, 100)
    told.is_busy = True
    for done in range(0, 101, 10):
        told.now += 10
        told.progress.on_bytes("a", done, 100)
    told.progress.end()
    assert told.bytes_done == [0, 150]


def test_what_another_process_fetches_is_told_too() -> None:
    told = _Told()
    told.progress.on_wait("a", "the node 10.0.0.7", 30, 100)
    assert told.bytes_done == [30]
