"""The channel of one followed job, and events as they go over the wire."""

import asyncio
import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamforge.api.errors import HttpError
from dreamforge.api.sse import Frame, pieces, place_of
from dreamforge.api.tail import KEPT, Channel, StreamBroken
from dreamforge.jobs.job import JobStatus
from dreamforge.store.events import EventRecord, JobNews

JOB = uuid.UUID(int=7)


def an_event(seq: int, **payload: Any) -> EventRecord:
    """A line of the log."""
    return EventRecord(
        seq=seq,
        ts=datetime(2026, 3, 1, tzinfo=UTC),
        code="log",
        level="info",
        job_id=JOB,
        step_id=None,
        attempt=None,
        payload=payload,
        progress={"fraction": 1 / 3, "items_done": 1, "items_total": 3},
    )


def _news(*seqs: int, status: JobStatus = JobStatus.RUNNING, last: int | None = None) -> JobNews:
    return JobNews("default", status, last or max(seqs, default=0), [an_event(seq) for seq in seqs])


def _seqs(channel: Channel, seq: int, most: int = 100) -> list[int] | None:
    frames = channel.behind(seq, most=most)
    return None if frames is None else [frame.seq for frame in frames]


def test_a_channel_gives_what_is_behind_a_place_or_says_that_it_cannot() -> None:
    channel = Channel(seq=10)
    assert (_seqs(channel, 10), _seqs(channel, 9), _seqs(channel, 11)) == ([], None, [])
    assert channel.publish(_news(11, 12, 13))
    assert (_seqs(channel, 9), _seqs(channel, 10), _seqs(channel, 12)) == (None, [11, 12, 13], [13])
    assert _seqs(channel, 10, most=2) == [11, 12]
    assert (_seqs(channel, 13), _seqs(channel, 14)) == ([], []), "who is ahead waits"


def test_a_channel_keeps_the_last_events_only() -> None:
    channel = Channel(seq=0)
    channel.publish(_news(*range(1, KEPT + 6)))
    assert _seqs(channel, 4) is None
    assert _seqs(channel, 5, most=1) == [6]
    assert _seqs(channel, KEPT + 4) == [KEPT + 5]


def test_a_gap_is_never_passed_on() -> None:
    channel = Channel(seq=1)
    assert channel.publish(_news(2, 4, 5))
    assert _seqs(channel, 1) == [2]
    with pytest.raises(StreamBroken):
        channel.is_over_at(2)


def test_a_job_is_over_at_its_last_event_and_not_before_nor_after_a_retry() -> None:
    channel = Channel(seq=1)
    channel.publish(_news(2, status=JobStatus.FAILED, last=3))
    assert not channel.is_over_at(2), "its last event was not read yet"
    channel.publish(_news(3, status=JobStatus.FAILED))
    assert channel.is_over_at(3)
    assert not channel.is_over_at(2)
    assert not channel.is_over_at(4), "a reader that knows of the retry"
    channel.publish(_news(4, status=JobStatus.QUEUED))
    assert not channel.is_over_at(4)
    assert channel.publish(None)
    with pytest.raises(StreamBroken):
        channel.is_over_at(4)


def test_readers_are_woken_by_news_and_by_nothing_else() -> None:
    async def wait() -> None:
        channel = Channel(seq=1)
        woken = asyncio.create_task(channel.wait())
        await asyncio.sleep(0)
        assert not channel.publish(_news(last=1))
        await asyncio.sleep(0)
        assert not woken.done()
        channel.publish(_news(2))
        await woken

    asyncio.run(wait())


@given(st.text())
def test_whatever_an_event_says_is_one_line(message: str) -> None:
    text = Frame(an_event(17, message=message.encode("utf-8", "replace").decode())).sse.decode()
    first, second, third, *end = text.split("\n")
    assert (first, second, end) == ("id: 17", "event: log", ["", ""])
    assert "\r" not in text
    data = json.loads(third.removeprefix("data: "))
    assert data["progress"] == {"fraction": 0.3333, "items_done": 1, "items_total": 3}
    line = json.loads(Frame(an_event(17)).line)
    assert {**line, "payload": data["payload"], "progress": data["progress"]} == data


def test_an_event_is_serialised_once_for_all_its_readers() -> None:
    frame = Frame(an_event(1))
    assert frame.sse is frame.sse
    assert frame.line is frame.line
    assert next(pieces([frame.sse])) is frame.sse, "one event is sent without a copy"


@given(st.lists(st.integers(1, 100_000), max_size=20))
def test_much_is_sent_in_pieces(sizes: list[int]) -> None:
    parts = [bytes([index]) * size for index, size in enumerate(sizes)]
    sent = list(pieces(parts))
    assert b"".join(sent) == b"".join(parts)
    assert all(len(piece) <= 65536 or piece in parts for piece in sent)


def test_places_are_plain_numbers() -> None:
    assert (place_of([]), place_of(["0"]), place_of(["007"])) == (None, 0, 7)
    for given_ids in (["banana"], ["-1"], [""], ["1", "2"], ["1" * 20], ["\u0661"]):
        with pytest.raises(HttpError) as caught:
            place_of(given_ids)
        assert caught.value.status_code == 400
