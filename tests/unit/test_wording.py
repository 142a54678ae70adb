"""What commands say: times, sizes, names of files, errors, events."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamforge.api.schemas import LogLine
from dreamforge.cli.event_line import event_line, said
from dreamforge.cli.wording import age, duration, images, sentence, shortened, size, slug
from dreamforge.client.errors import ApiError, ClientError, UnexpectedAnswer, Unreachable

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-3, "just now"),
        (4.9, "just now"),
        (12, "12 s ago"),
        (180, "3 min ago"),
        (7200, "2 h ago"),
        (86_400, "1 day ago"),
        (5 * 86_400, "5 days ago"),
    ],
)
def test_ages_are_told_in_one_unit(seconds: float, said: str) -> None:
    assert age(NOW - timedelta(seconds=seconds), now=NOW) == said


@pytest.mark.parametrize(("seconds", "said"), [(0.42, "0.4 s"), (59, "59 s"), (60, "1 min"), (3600, "1 h")])
def test_durations_are_told_in_one_unit(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("bytes_", "said"),
    [(0, "0 B"), (812, "812 B"), (1_400_000, "1.4 MB"), (250_000, "250 KB"), (3 * 10**15, "3000 TB")],
)
def test_sizes_are_told_in_one_unit(bytes_: int, said: str) -> None:
    assert size(bytes_) == said


def test_one_image_is_singular() -> None:
    assert (images(0, 1), images(2, 4)) == ("0 of 1 image", "2 of 4 images")


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A lighthouse, at dawn!", "a-lighthouse-at-dawn"),
        ("Straße in Köln", "strae-in-koln"),
        ("灯台", "image"),
        ("../../etc/passwd", "etc-passwd"),
        ("word " * 30, "word-word-word-word-word-word-word-word"),
        ("x" * 100, "x" * 40),
    ],
)
def test_a_prompt_becomes_part_of_a_name(prompt: str, name: str) -> None:
    assert slug(prompt) == name


@given(st.text())
def test_a_name_is_short_and_harmless(prompt: str) -> None:
    assert 1 <= len(slug(prompt)) <= 40
    assert set(slug(prompt)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@given(st.text(), st.integers(1, 50))
def test_a_shortened_text_fits_on_its_line(text: str, length: int) -> None:
    assert len(shortened(text, length)) <= length
    assert "\n" not in shortened(text, length)


def _api(code: str, message: str = "It is so.", **details: Any) -> ApiError:
    return ApiError(status=400, code=code, message=message, details=details, request_id="r-1")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            Unreachable("http://here", "refused"),
            "No Dream Forge answers at http://here (refused). Start one here: dreamforge up",
        ),
        (
            Unreachable("http://s3", "refused", is_store=True),
            "The object store does not answer at http://s3 (refused).",
        ),
        (_api("unknown_model"), "unknown_model: It is so. See: dreamforge model list"),
        (_api("not_found"), "not_found: It is so. See: dreamforge jobs list"),
        (
            _api("invalid_request", errors=[{"path": "params.width", "message": "must be a multiple of 8"}]),
            "invalid_request: It is so. params.width must be a multiple of 8.",
        ),
        (
            _api("invalid_request", errors=[{"path": "source", "message": "Write that source as hf:org/repo."}]),
            "invalid_request: It is so. source: Write that source as hf:org/repo.",
        ),
        (
            _api("invalid_request", errors=[{"path": f"p{n}", "message": "is bad"} for n in range(5)]),
            "invalid_request: It is so. p0 is bad; p1 is bad; p2 is bad; and 2 more.",
        ),
        (_api("internal"), "internal: It is so. The service's log tells more: dreamforge logs api (request r-1)"),
        (
            UnexpectedAnswer("http://here", status=404),
            "http://here gave an answer that is not Dream Forge's (status 404). Is the address right? See --url and"
            " DREAMFORGE_URL.",
        ),
    ],
)
def test_an_error_says_what_to_do(error: ClientError, words: str) -> None:
    assert sentence(error) == words


def _event(code: str, payload: dict[str, Any]) -> LogLine:
    return LogLine.model_validate(
        {
            "seq": 1,
            "ts": NOW,
            "code": code,
            "job_id": "00000000-0000-0000-0000-000000000001",
            "step_id": None,
            "attempt": None,
            "level": "info",
            "payload": payload,
        }
    )


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({}, ""),
        ({"reason": "submitted"}, "reason submitted"),
        (
            {"item_index": 1, "stage": "encode_prompt", "stage_progress": 0.4, "progress": 0.1},
            "image 1: encode prompt 40%",
        ),
        ({"item_index": 1, "seed": 7}, "image 1: seed 7"),
        ({"item_index": 1, "seed": 7, "timings": {"save": 0.1}}, "image 1: seed 7, save 0.1 s"),
        ({"item_index": 1, "artifact_id": "x", "size_bytes": 1234, "checksum": "c"}, "image 1: 1.2 KB"),
        ({"phase": "before", "available": False, "message": "no GPU"}, "before: no GPU"),
        (
            {"phase": "after", "available": True, "message": None, "used_bytes": 10**9, "total_bytes": 8 * 10**9},
            "after: 1.0 GB of 8.0 GB",
        ),
        ({"step": "generate", "error": {"code": "oom", "message": "Too large."}}, "oom: Too large."),
        ({"message": "two\nlines", "details": {}}, "two lines"),
        ({"items_done": 3, "cancel_latency_ms": 812}, "items done 3, cancel latency ms 812"),
    ],
)
def test_an_event_is_one_line(payload: dict[str, Any], words: str) -> None:
    assert said(_event("x", payload)) == words
    assert "\n" not in event_line(_event("item.progress", payload)).plain
