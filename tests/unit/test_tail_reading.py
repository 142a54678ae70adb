"""One reader's way through a job's events, and the tail, over a feed that does as it is told."""

import asyncio
import uuid
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any

import pytest

from dreamforge.api.tail import BATCH, KEPT, StreamBroken, StreamRules, Tail
from dreamforge.api.tail_reading import Reading
from dreamforge.errors import DatabaseUnavailable
from dreamforge.jobs.job import JobStatus
from dreamforge.store.events import EventFeed, JobNews
from tests.unit.test_tail import JOB, an_event

OTHER = uuid.UUID(int=8)
_QUICK = StreamRules(poll=0.001, idle=0.002, keep_alive=60)


class Told(EventFeed):
    """A feed of jobs whose events are a number."""

    def __init__(self, **last_seqs: int) -> None:
        self.last: dict[uuid.UUID, int] = {JOB: last_seqs.get("job", 0), OTHER: last_seqs.get("other", 0)}
        self.missing = 0
        self.over: set[uuid.UUID] = set()
        self.trouble: Exception | None = None
        self.unreadable: set[uuid.UUID] = set()
        self.looks = 0
        self.is_silent = False

    async def news(self, places: Mapping[uuid.UUID, int], *, most: int) -> dict[uuid.UUID, JobNews]:
        """What there is, or trouble."""
        self.looks += 1
        if self.is_silent:
            await asyncio.Event().wait()
        if self.trouble:
            raise self.trouble
        if self.unreadable & set(places):
            raise ValueError("a row of another version")
        return {job_id: self._news(job_id, seq, most) for job_id, seq in places.items() if job_id in self.last}

    def _news(self, job_id: uuid.UUID, seq: int, most: int) -> JobNews:
        last = self.last[job_id]
        status = JobStatus.FAILED if job_id in self.over else JobStatus.RUNNING
        there = range(seq + 1, min(last - self.missing, seq + most) + 1)
        return JobNews("default", status, last, [an_event(number) for number in there])


class Reader:
    """Reads in a task; what it has read, and how it ended."""

    def __init__(self, tail: Tail, job_id: uuid.UUID = JOB) -> None:
        self.seqs: list[int] = []
        self.largest = 0
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self._tail, self._job_id = tail, job_id
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        page = await self._tail.page(self._job_id, after=0)
        assert page is not None
        reading = Reading(tail=self._tail, job_id=self._job_id, after=0, page=page)
        async for frames in reading.batches():
            self.seqs += [frame.seq for frame in frames]
            self.largest = max(self.largest, len(frames))
            await self.may_go_on.wait()

    async def has(self, last: int) -> None:
        """Return when it has everything up to an event."""
        while len(self.seqs) < last:
            assert not self.task.done(), self.task
            await asyncio.sleep(0.001)
        assert self.seqs == list(range(1, last + 1))


def _run(what: Coroutine[Any, Any, None]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(30):
            await what

    asyncio.run(in_time())


def test_who_falls_behind_the_channel_goes_back_to_history_and_is_live_again() -> None:
    async def play() -> None:
        feed = Told(job=3)
        tail = Tail(feed=feed, rules=_QUICK)
        slow, quick = Reader(tail), Reader(tail)
        await slow.has(3)
        slow.may_go_on.clear()
        for last in (4, KEPT, 2 * KEPT + 50):
            feed.last[JOB] = last
            await quick.has(last)
        slow.may_go_on.set()
        await slow.has(2 * KEPT + 50)
        feed.last[JOB] += 1
        await slow.has(2 * KEPT + 51)
        assert slow.largest <= BATCH
        feed.over.add(JOB)
        await asyncio.gather(slow.task, quick.task)

    _run(play())


def test_a_tail_that_ends_breaks_off_who_reads_history() -> None:
    async def play() -> None:
        tail = Tail(feed=Told(job=10 * BATCH), rules=_QUICK)
        reader = Reader(tail)
        reader.may_go_on.clear()
        await reader.has(BATCH)
        tail.end()
        reader.may_go_on.set()
        with pytest.raises(StreamBroken, match="leaving"):
            await reader.task

    _run(play())


def test_an_end_that_comes_with_the_first_reader_is_heard() -> None:
    async def play() -> None:
        tail = Tail(feed=Told(job=1), rules=_QUICK)
        check = tail.check

        def end_behind_the_look() -> None:
            check()
            tail.end()

        tail.check = end_behind_the_look  # type: ignore[method-assign] - another thread, at the worst moment
        with tail.watch(JOB, seq=1) as channel:
            await channel.wait()
            with pytest.raises(StreamBroken):
                check()

    _run(play())


def test_a_job_that_is_deleted_while_its_history_is_read_breaks_off() -> None:
    async def play() -> None:
        feed = Told(job=3 * BATCH)
        reader = Reader(Tail(feed=feed, rules=_QUICK))
        reader.may_go_on.clear()
        await reader.has(BATCH)
        del feed.last[JOB]
        reader.may_go_on.set()
        with pytest.raises(StreamBroken, match="deleted"):
            await reader.task

    _run(play())


def test_a_counter_that_is_ahead_of_its_events_is_not_asked_for_ever() -> None:
    async def play() -> None:
        feed = Told(job=5)
        feed.missing = 2
        reader = Reader(Tail(feed=feed, rules=_QUICK))
        with pytest.raises(StreamBroken, match="nothing follows 3"):
            await reader.task
        assert (reader.seqs, feed.looks) == ([1, 2, 3], 2)

    _run(play())


def test_a_database_that_has_gone_back_breaks_streams_off() -> None:
    async def play() -> None:
        feed = Told(job=5)
        reader = Reader(Tail(feed=feed, rules=_QUICK))
        await reader.has(5)
        feed.last[JOB] = 3
        with pytest.raises(StreamBroken, match="event 3 only, behind 5"):
            await reader.task

    _run(play())


def test_a_feed_that_fails_is_asked_again() -> None:
    async def play() -> None:
        feed = Told(job=1)
        reader = Reader(Tail(feed=feed, rules=_QUICK))
        await reader.has(1)
        for trouble in (DatabaseUnavailable(), None):
            feed.trouble = trouble
            looks = feed.looks
            while feed.looks < looks + 2:
                await asyncio.sleep(0.001)
        feed.last[JOB] = 2
        await reader.has(2)
        reader.task.cancel()

    _run(play())


def test_a_job_that_cannot_be_read_does_not_keep_the_others_from_their_news() -> None:
    async def play() -> None:
        feed = Told(job=1, other=1)
        tail = Tail(feed=feed, rules=_QUICK)
        sound, broken = Reader(tail), Reader(tail, OTHER)
        await sound.has(1)
        await broken.has(1)
        feed.unreadable.add(OTHER)
        feed.last[JOB] = 2
        await sound.has(2)
        with pytest.raises(StreamBroken, match="cannot be read"):
            await broken.task
        sound.task.cancel()

    _run(play())


def test_a_tail_whose_loop_ended_by_itself_begins_again() -> None:
    async def play() -> None:
        feed = Told(job=1)
        tail = Tail(feed=feed, rules=_QUICK)
        reader = Reader(tail)
        await reader.has(1)
        while not tail.is_polling:
            await asyncio.sleep(0.001)
        (loop,) = [task for task in asyncio.all_tasks() if task.get_name() == "tail"]
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop
        feed.last[JOB] = 2
        await reader.has(2)
        reader.task.cancel()

    _run(play())


def test_who_waits_for_a_page_among_many_does_not_wait_long() -> None:
    async def play() -> None:
        feed = Told(job=1)
        feed.is_silent = True
        tail = Tail(feed=feed, rules=_QUICK)
        loop = asyncio.get_running_loop()
        began = loop.time()
        answers = await asyncio.gather(*(tail.page(JOB, after=0) for _ in range(60)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {DatabaseUnavailable}
        assert loop.time() - began < 15, "all wait at once, and not one after the other"

    _run(play())
