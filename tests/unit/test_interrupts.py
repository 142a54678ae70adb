"""Signals as exceptions."""

import signal
import time
from collections.abc import Iterator

import pytest

from dreamforge.embedded import interrupts as module
from dreamforge.embedded.interrupts import HurryRequested, Interrupts, StopRequested

_ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


@pytest.fixture
def interrupts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Interrupts]:
    monkeypatch.setattr(module, "_AGAIN_SECONDS", 0.05)
    before = {number: signal.getsignal(number) for number in _ALL}
    interrupts = Interrupts()
    interrupts.install()
    yield interrupts
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


class _Finalized:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_a_finalizer_swallows_is_raised_again(interrupts: Interrupts) -> None:
    del interrupts
    swallowed = _Finalized()
    del swallowed
    with pytest.raises(StopRequested):
        time.sleep(5)


def test_what_was_caught_is_not_raised_again(interrupts: Interrupts) -> None:
    with pytest.raises(StopRequested):
        signal.raise_signal(signal.SIGINT)
    interrupts.caught()
    time.sleep(0.2)


def test_the_second_one_is_in_a_hurry(interrupts: Interrupts) -> None:
    with pytest.raises(StopRequested):
        signal.raise_signal(signal.SIGINT)
    interrupts.caught()
    with pytest.raises(HurryRequested):
        signal.raise_signal(signal.SIGINT)


def test_what_comes_while_it_is_held_is_raised_behind_the_block(interrupts: Interrupts) -> None:
    reached: list[str] = []

    def block() -> None:
        with interrupts.held():
            signal.raise_signal(signal.SIGHUP)
            time.sleep(0.2)
            reached.append("the end of the block")
        reached.append("what stands behind it")

    with pytest.raises(StopRequested):
        block()
    assert reached == ["the end of the block"]


def test_what_comes_while_a_held_block_fails_is_not_lost(interrupts: Interrupts) -> None:
    def block() -> None:
        with interrupts.held():
            signal.raise_signal(signal.SIGTERM)
            raise OSError("the disk is full")

    with pytest.raises(StopRequested):
        block()


def test_what_comes_while_it_is_ignored_is_gone(interrupts: Interrupts) -> None:
    with interrupts.ignored():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.2)
    time.sleep(0.2)
