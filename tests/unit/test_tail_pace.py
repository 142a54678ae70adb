"""How often the tail looks, by a clock that goes only where nobody has anything to do."""

import asyncio
import contextlib
import selectors
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest

from dreamforge.api.tail import STIR_SHARE, StreamRules, Tail
from dreamforge.store.events import JobNews
from tests.unit.test_tail import JOB
from tests.unit.test_tail_reading import Told

_RULES = StreamRules(poll=0.1, idle=0.4, keep_alive=10)
_FRESH = 2.0
"""Seconds after news in which the pace is kept."""


class ClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose waiting takes no time, and whose clock says that it did."""

    def __init__(self) -> None:
        super().__init__(_Leaping(self))
        self.now = 0.0

    def time(self) -> float:
        """Seconds waited and worked so far."""
        return self.now


class _Leaping(selectors.SelectSelector):
    def __init__(self, loop: ClockLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found and timeout:
            self._loop.now += timeout
        return found


class Paced(Told):
    """A feed whose looks take some seconds; with news at some times.

    When each look began and ended, and when its reader was woken.
    """

    def __init__(self, loop: ClockLoop, *, look: float, news_at: Sequence[float] = ()) -> None:
        super().__init__(job=1)
        self.look = look
        self.begun: list[float] = []
        self.ended: list[float] = []
        self.woken: list[float] = []
        self._loop = loop
        for at in news_at:
            loop.call_at(at, self._more)

    async def news(self, places: Mapping[Any, int], *, most: int) -> dict[Any, JobNews]:
        """What there is, after a while."""
        self.begun.append(self._loop.time())
        await asyncio.sleep(self.look)
        news = await super().news(places, most=most)
        self.ended.append(self._loop.time())
        return news

    def _more(self) -> None:
        self.last[JOB] += 1


def _looks(
    *, look: float, seconds: float, news_at: Sequence[float] = (), telling: float = 0.0, joins_at: float | None = None
) -> Paced:
    """A feed that was looked at for ``seconds``.

    To tell its news to all readers takes ``telling``; another reader comes at ``joins_at``.
    """
    with asyncio.Runner(loop_factory=ClockLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, ClockLoop)
        feed = Paced(loop, look=look, news_at=news_at)
        tail = Tail(feed=feed, rules=_RULES)

        async def read() -> None:
            with tail.watch(JOB, seq=1) as channel:
                while True:
                    seq = channel.seq
                    await channel.wait()
                    feed.woken.append(loop.time())
                    if channel.seq > seq:
                        # As a thousand readers do, who have the loop one after the other.
                        loop.now += telling

        def join() -> None:
            joined.enter_context(tail.watch(JOB, seq=feed.last[JOB]))

        async def play() -> None:
            reading = asyncio.create_task(read())
            if joins_at is not None:
                loop.call_at(joins_at, join)
            await asyncio.sleep(seconds)
            reading.cancel()

        with contextlib.ExitStack() as joined:
            runner.run(play())
    return feed


def _gaps(times: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


def test_while_there_is_news_looks_keep_their_pace_however_long_the_telling_takes() -> None:
    news = [step / 5 for step in range(50)]
    quick = _looks(look=0.005, seconds=10, news_at=news)
    busy = _looks(look=0.005, seconds=10, news_at=news, telling=0.13)
    assert len(quick.begun) == pytest.approx(100, abs=2)
    assert len(busy.begun) == pytest.approx(100, abs=3)


def test_looks_become_rare_some_time_after_the_last_news() -> None:
    feed = _looks(look=0.005, seconds=20, news_at=[1.0])
    soon = [gap for began, gap in zip(feed.begun, _gaps(feed.begun), strict=False) if began < 1.0 + _FRESH]
    late = [gap for began, gap in zip(feed.begun, _gaps(feed.begun), strict=False) if began > 1.0 + _FRESH + 3]
    assert soon == pytest.approx([_RULES.poll] * len(soon))
    assert late == pytest.approx([_RULES.idle] * len(late))
    assert soon
    assert late


@pytest.mark.parametrize("look", [0.41, 0.6, 1.8])
@pytest.mark.parametrize("has_news", [True, False])
def test_half_of_the_time_at_most_is_spent_on_looking_where_a_look_takes_long(look: float, has_news: bool) -> None:
    feed = _looks(look=look, seconds=20, news_at=[step / 5 for step in range(100)] if has_news else [])
    assert len(feed.begun) > 5
    for began, ended, next_began in zip(feed.begun, feed.ended, feed.begun[1:], strict=False):
        assert next_began - ended >= ended - began - 1e-9


def test_who_comes_in_a_long_pause_is_looked_for_at_once() -> None:
    quiet = _looks(look=0.005, seconds=20)
    joins_at = next(began for began in quiet.begun if began > 10) + 0.15
    assert not [began for began in quiet.begun if joins_at <= began < joins_at + 0.2]
    joined = _looks(look=0.005, seconds=20, joins_at=joins_at)
    first, second, *_ = [began for began in joined.begun if began >= joins_at]
    assert first == pytest.approx(joins_at)
    assert second == pytest.approx(joins_at + _RULES.idle), "and from then on at the old pace"


def test_readers_see_often_enough_whether_a_sign_of_life_is_due() -> None:
    feed = _looks(look=0.005, seconds=20)
    gaps = _gaps(feed.woken)
    assert max(gaps) <= _RULES.keep_alive * STIR_SHARE + _RULES.idle + 0.01
    assert len(gaps) >= 5


def test_one_long_telling_is_not_followed_by_a_burst_of_looks() -> None:
    feed = _looks(look=0.005, seconds=5, news_at=[1.0], telling=1.5)
    assert min(_gaps(feed.begun)) == pytest.approx(0.005)
    assert len([began for began in feed.begun if 2.5 <= began < 3.0]) <= 6
