"""One tail for each replica: every job that is followed is looked at in one query, however many clients follow it.

A ``Channel`` holds the last events of one job, each serialised once for all its readers. Readers have no queue, only a
place: one that is slow costs nothing but that, holds nobody up, and reads from Postgres what the channel no longer has.
"""

import asyncio
import contextlib
import itertools
import logging
import uuid
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from dreamforge.api.sse import Frame
from dreamforge.errors import DatabaseUnavailable
from dreamforge.store.engine import in_time
from dreamforge.store.events import EventFeed, JobNews

log = logging.getLogger(__name__)

BATCH = 100
"""Events that a reader is handed at once, and all that it holds: a page of history, or a part of the channel."""
_LOOK = 500
"""Events of one job that the tail reads at once."""
KEPT = 1000
"""Events that a channel holds for those who are a little behind."""
_READERS = 4
"""Pages of history that are read at the same time, out of a pool of about ten connections."""
_FRESH_SECONDS = 2.0
"""So long after news more is soon expected: the pause does not grow yet."""
_GROWTH = 1.25
_AWAY_SECONDS = 1.0
STIR_SHARE = 0.2
"""How often readers see whether a sign of life is due, as a share of the longest silence; one is due so much early."""
_SLOW_SECONDS = 0.4
"""A look that takes longer is slow. A quicker one may have waited for nothing but the telling of a thousand readers."""


class StreamBroken(Exception):
    """The stream cannot go on here. It is broken off, not ended, so that its client resumes."""


@dataclass(frozen=True)
class StreamRules:
    """Seconds: from one look to the next while there is news, and while there is none; of silence before a sign of
    life; that a reader may take nothing."""

    poll: float = 0.1
    idle: float = 0.25
    keep_alive: float = 15.0
    stall: float = 20.0


@dataclass(frozen=True)
class Page:
    """Events behind a place, and what was so when they were read."""

    user_id: str
    frames: Sequence[Frame]
    last_seq: int
    is_terminal: bool


class Channel:
    """One followed job: its last events, and whether it is over."""

    def __init__(self, *, seq: int) -> None:
        self.seq = seq
        self.readers = 0
        self._frames: deque[Frame] = deque(maxlen=KEPT)
        self._is_over = False
        self._trouble: str | None = None
        self._changed = asyncio.Event()

    def behind(self, seq: int, *, most: int) -> Sequence[Frame] | None:
        """Up to ``most`` events behind ``seq``, or None when the channel does not reach back so far."""
        first = self.seq - len(self._frames)
        if seq < first:
            return None
        start = seq - first
        return list(itertools.islice(self._frames, start, start + most))

    def is_over_at(self, seq: int) -> bool:
        """True when the job is terminal and ``seq`` is its last event. Raises ``StreamBroken`` when it was deleted."""
        if self._trouble:
            raise StreamBroken(self._trouble)
        return self._is_over and seq == self.seq

    def break_off(self, why: str) -> None:
        """Send the readers away: the channel cannot go on."""
        self._trouble = why
        self.wake()

    async def wait(self) -> None:
        """Return when there is news, or it is time to see whether a sign of life is due."""
        # Without a time limit for each reader: those would take a fifth of what it takes to tell a thousand of them.
        await self._changed.wait()

    def publish(self, news: JobNews | None) -> bool:
        """Take over what was read behind ``seq``; True when that is anything. None: the job is gone."""
        before = (self.seq, self._is_over, self._trouble)
        self._trouble = _trouble_with(news, self.seq)
        for event in news.events if news else ():
            if event.seq != self.seq + 1:
                # Nobody's event is lost by our own hand. The readers are sent away, and other jobs go on.
                self._trouble = f"event {event.seq} does not follow {self.seq}"
                log.error("a job's events have a gap", extra={"job_id": str(event.job_id), "seq": event.seq})
                break
            self._frames.append(Frame(event))
            self.seq = event.seq
        self._is_over = news is not None and news.status.is_terminal and news.last_seq == self.seq
        moved = before != (self.seq, self._is_over, self._trouble)
        if moved:
            self.wake()
        return moved

    def wake(self) -> None:
        """Have every reader look again."""
        self._changed.set()
        self._changed = asyncio.Event()


def _trouble_with(news: JobNews | None, seq: int) -> str | None:
    if news is None:
        return "the job was deleted"
    if news.last_seq < seq:
        # A standby that has taken over, and lags: what the readers have is not there.
        return f"the database has come to event {news.last_seq} only, behind {seq}"
    return None


class Tail:
    """The jobs that somebody follows on this replica. One event loop's; only ``end`` may be called from elsewhere.

    It asks Postgres while somebody follows a job, and does nothing at all otherwise.
    """

    def __init__(self, *, feed: EventFeed, rules: StreamRules) -> None:
        self.rules = rules
        self._feed = feed
        self._channels: dict[uuid.UUID, Channel] = {}
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._joined = asyncio.Event()
        self._reading = asyncio.Semaphore(_READERS)
        self._is_ended = False

    @property
    def readers(self) -> int:
        """How many streams wait for news."""
        return sum(channel.readers for channel in self._channels.values())

    @property
    def is_polling(self) -> bool:
        """True while Postgres is asked for news."""
        return self._task is not None and not self._task.done()

    async def page(self, job_id: uuid.UUID, *, after: int) -> Page | None:
        """The job's events behind ``after``, one page of them; None when there is no such job.

        Raises ``DatabaseUnavailable``, also when too many read.
        """
        # Many clients come at once when a replica has died. They wait here, so that all others find a connection.
        async with in_time(), self._reading:
            news = (await self._feed.news({job_id: after}, most=BATCH)).get(job_id)
        if news is None:
            return None
        frames = [Frame(event) for event in news.events]
        return Page(news.user_id, frames, last_seq=news.last_seq, is_terminal=news.status.is_terminal)

    @contextlib.contextmanager
    def watch(self, job_id: uuid.UUID, *, seq: int) -> Generator[Channel]:
        """Follow a job of which everything up to ``seq`` is known. Raises ``StreamBroken`` once the tail has ended."""
        # Before the look at the end: whoever ends the tail meanwhile finds the loop, or is seen.
        self._loop = asyncio.get_running_loop()
        self.check()
        channel = self._channels.get(job_id)
        if channel is None:
            channel = self._channels[job_id] = Channel(seq=seq)
        channel.readers += 1
        self._joined.set()
        self._begin()
        try:
            yield channel
        finally:
            channel.readers -= 1
            if not channel.readers:
                self._channels.pop(job_id, None)

    def check(self) -> None:
        """Raise ``StreamBroken`` once the tail has ended."""
        if self._is_ended:
            raise StreamBroken("the replica is leaving")

    def end(self) -> None:
        """Break off every stream, now and from now on: the replica is leaving. May be called from any thread."""
        self._is_ended = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake_all)

    def _begin(self) -> None:
        if self._channels and not self.is_polling and not self._is_ended:
            self._task = asyncio.create_task(self._run(), name="tail")
            self._task.add_done_callback(self._begin_again)

    def _begin_again(self, task: asyncio.Task[None]) -> None:
        # A reader that came in this very moment has begun it already.
        if not self._channels or self._is_ended or self.is_polling:
            return
        # Nobody but the readers would notice, by their silence.
        log.error("the tail has ended by itself", exc_info=None if task.cancelled() else task.exception())
        asyncio.get_running_loop().call_later(_AWAY_SECONDS, self._begin)

    def _wake_all(self) -> None:
        if self._task is not None:
            self._task.cancel()
        for channel in self._channels.values():
            channel.wake()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pause, is_away = self.rules.poll, False
        due = news_at = stirred_at = loop.time()
        while self._channels:
            began = loop.time()
            self._joined.clear()
            try:
                moved = await self._poll()
            except DatabaseUnavailable:
                if not is_away:
                    log.warning("streams wait for the database")
                is_away, pause = True, _AWAY_SECONDS
            except Exception:
                log.exception("a look for events failed")
                pause = _AWAY_SECONDS
            else:
                is_away = False
                news_at = loop.time() if moved else news_at
                pause = self._next_pause(pause, silent_for=loop.time() - news_at)
            now = loop.time()
            if now - stirred_at >= self.rules.keep_alive * STIR_SHARE:
                stirred_at = now
                for channel in self._channels.values():
                    channel.wake()
            due = self._next_due(due, pause, began=began, now=now)
            await self._rest(until=due)
            due = min(due, loop.time())

    def _next_pause(self, pause: float, *, silent_for: float) -> float:
        if silent_for < _FRESH_SECONDS:
            return self.rules.poll
        return min(max(pause, self.rules.poll) * _GROWTH, self.rules.idle)

    def _next_due(self, due: float, pause: float, *, began: float, now: float) -> float:
        took = now - began
        if took > _SLOW_SECONDS:
            # The database is under load, or away: at most half of the time is spent on looking.
            return now + max(pause, took)
        # Counted from when this look was due: that many clients are told meanwhile does not make looks fewer.
        return max(due + pause, now)

    async def _poll(self) -> bool:
        followed = dict(self._channels)
        try:
            return await self._look(followed)
        except DatabaseUnavailable:
            raise
        except Exception:
            log.exception("a look for events failed; each job is looked at alone")
        moved = False
        for job_id, channel in followed.items():
            try:
                moved |= await self._look({job_id: channel})
            except DatabaseUnavailable:
                raise
            except Exception:
                log.exception("a job's events cannot be read", extra={"job_id": str(job_id)})
                channel.break_off("its events cannot be read")
        return moved

    async def _look(self, followed: Mapping[uuid.UUID, Channel]) -> bool:
        news = await self._feed.news({job_id: channel.seq for job_id, channel in followed.items()}, most=_LOOK)
        moved = False
        for job_id, channel in followed.items():
            # One that was left and joined again meanwhile stands at another place.
            if self._channels.get(job_id) is channel:
                moved |= channel.publish(news.get(job_id))
        return moved

    async def _rest(self, *, until: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, min(until - loop.time(), self.rules.poll)))
        # The rest of a long pause is not for somebody who has just come.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._joined.wait()
