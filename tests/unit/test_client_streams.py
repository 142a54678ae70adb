"""Streams as the client follows them, without a network."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamforge.api.schemas import LogLine, StreamEvent
from dreamforge.client.calls import LogQuery
from dreamforge.client.errors import ApiError, UnexpectedAnswer, Unreachable
from dreamforge.client.flows import Flow, Heard, logged
from dreamforge.client.flows import streamed as streamed_by
from dreamforge.client.patience import RETRY_PAUSES
from tests.unit.test_client import AWAY, Clock, Played, Slow

OPENED, ENDED, OVER = Heard.OPENED, Heard.ENDED, Heard.OVER


def streamed(job_id: str, *, after: int) -> Flow[StreamEvent, None]:
    """Followed in no time."""
    return streamed_by(job_id, after=after, now=Clock())


def _event(seq: int, **values: Any) -> StreamEvent:
    return StreamEvent.model_validate(
        {
            "seq": seq,
            "ts": "2026-03-01T12:00:00Z",
            "code": "log",
            "job_id": str(uuid.UUID(int=7)),
            "step_id": None,
            "attempt": None,
            "level": "info",
            "payload": {},
            "progress": {"fraction": 0.5, "items_done": 1, "items_total": 2},
            **values,
        }
    )


def _refusal(status: int) -> ApiError:
    return ApiError(status=status, code="x", message="m", details={}, request_id=None)


def test_a_stream_is_over_when_the_service_says_so() -> None:
    played = Played(streamed("1", after=0), OPENED, _event(1), _event(2), ENDED, OVER)
    assert [event.seq for event in played.given] == [1, 2]
    assert played.asked[-1] == "stream after 2"
    assert played.pauses == []


def test_a_stream_that_breaks_is_taken_up_behind_what_was_heard() -> None:
    torn = Unreachable("http://here", "torn")
    played = Played(
        streamed("1", after=3),
        OPENED,
        _event(4),
        torn,
        AWAY,
        _refusal(503),
        _refusal(500),
        OPENED,
        _event(5),
        ENDED,
        OVER,
    )
    assert [event.seq for event in played.given] == [4, 5]
    assert [place for place in played.asked if place != "stream after 3"][:2] == ["stream after 4"] * 2
    assert tuple(played.pauses) == (*RETRY_PAUSES, 2.0)


def test_patience_begins_anew_when_somebody_answers() -> None:
    """An answer is an event, or a stream that stays; one that is only opened is none."""
    clock = Clock()
    away = [AWAY] * 19
    answers = [*away, OPENED, _event(1), *away, OPENED, Slow(6, AWAY), *away[1:], OPENED, ENDED, OVER]
    played = Played(streamed_by("1", after=0, now=clock), *answers, clock=clock)
    assert [event.seq for event in played.given] == [1]
    with pytest.raises(Unreachable):
        Played(streamed_by("1", after=0, now=clock), *[OPENED, AWAY] * 21, clock=clock)


def test_a_service_that_ends_streams_at_once_is_not_asked_without_pause() -> None:
    played = Played(streamed("1", after=0), OPENED, ENDED, OPENED, ENDED, OPENED, _event(1), ENDED, OVER)
    assert tuple(played.pauses) == RETRY_PAUSES[:2]
    clock = Clock()
    with pytest.raises(UnexpectedAnswer):
        Played(streamed_by("1", after=0, now=clock), *[OPENED, ENDED] * 21, clock=clock)
    assert clock.seconds < 40


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_refusal_is_raised(status: int) -> None:
    with pytest.raises(ApiError):
        Played(streamed("1", after=9), _refusal(status))


@pytest.mark.parametrize("seq", [1, 2, 4])
def test_a_service_that_repeats_or_leaves_out_is_not_believed(seq: int) -> None:
    with pytest.raises(UnexpectedAnswer):
        Played(streamed("1", after=0), OPENED, _event(1), _event(2), _event(seq))


@given(cuts=st.lists(st.integers(0, 30), max_size=20), length=st.integers(0, 30))
def test_wherever_it_breaks_every_event_comes_once_and_in_order(cuts: list[int], length: int) -> None:
    answers: list[object] = []
    place = 0
    for cut in sorted(min(cut, length) for cut in cuts):
        answers += [OPENED, *(_event(seq) for seq in range(place + 1, cut + 1)), AWAY]
        place = cut
    answers += [OPENED, *(_event(seq) for seq in range(place + 1, length + 1)), ENDED, OVER]
    played = Played(streamed("1", after=0), *answers)
    assert [event.seq for event in played.given] == list(range(1, length + 1))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (LogQuery(), [1, 2, 3]),
        (LogQuery(levels=["error"]), [2]),
        (LogQuery(codes=["log", "item.started"]), [1, 3]),
        (LogQuery(item_index=0), [3]),
    ],
)
def test_a_followed_log_is_the_stream_s_lines_that_fit(query: LogQuery, expected: list[int]) -> None:
    events = [
        _event(1, payload={"item_index": 4}),
        _event(2, level="error", code="job.failed"),
        _event(3, code="item.started", payload={"item_index": 0}),
    ]
    played = Played(logged("1", query, follow=True, now=Clock()), OPENED, *events, ENDED, OVER)
    assert [line.seq for line in played.given] == expected
    assert {type(line) for line in played.given} == {LogLine}


@pytest.mark.parametrize(
    "query", [{"after": -1}, {"after": 2**63}, {"levels": ["loud"]}, {"codes": ["log", "x"]}, {"item_index": 100}]
)
def test_what_the_service_would_refuse_is_refused_before_it_is_sent(query: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"seq|no level or code|0 to 99"):
        LogQuery(**query)


def test_a_log_that_is_not_followed_is_read_once() -> None:
    query = LogQuery(7, ["warning", "error"], ["log"], 3)
    played = Played(logged("1", query, follow=False, now=Clock()), [])
    assert played.asked == ["/v1/jobs/1/logs?after=7?level=warning?level=error?code=log?item_index=3"]


@pytest.mark.parametrize("flow", [lambda: streamed("../../healthz", after=0)])
def test_an_id_stays_one_segment_of_the_path(flow: Callable[[], Any]) -> None:
    assert next(flow()).path == "/v1/jobs/..%2F..%2Fhealthz/progress/stream"
