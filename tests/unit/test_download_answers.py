"""What an answer's head means, and whether to try again: decided without a server."""

import pytest

from dreamforge.errors import DownloadCorrupt, SourceUnavailable
from dreamforge.models.download.answers import Head, Known, Mark, Meaning, mark_of, retry_after, understand
from dreamforge.models.download.attempts import Attempts
from dreamforge.models.download.limits import Retries
from dreamforge.models.remote import RemoteFile

FILE = RemoteFile("model.safetensors", "https://models.example/model.safetensors")
NEW = "Thu, 26 Nov 2026 20:00:00 GMT"
OLD = "Thu, 26 Nov 2026 10:00:00 GMT"


def _understood(status: int, headers: dict[str, str], *, known: Known = Known(None, Mark())) -> Head:  # noqa: B008
    return understand(status, headers, host="models.example", file=FILE, begin=10, end=20, known=known)


@pytest.mark.parametrize(
    ("headers", "mark"),
    [
        ({"ETag": '"a"'}, Mark(etag='"a"')),
        ({"ETag": 'W/"a"'}, Mark()),
        ({"ETag": "a"}, Mark()),
        ({"ETag": '""'}, Mark()),
        ({"Last-Modified": OLD, "Date": NEW}, Mark(last_modified=OLD)),
        ({"Last-Modified": NEW, "Date": NEW}, Mark()),
        ({"Last-Modified": OLD}, Mark()),
        ({"Last-Modified": "yesterday", "Date": NEW}, Mark()),
    ],
)
def test_only_what_is_sure_is_a_mark(headers: dict[str, str], mark: Mark) -> None:
    assert mark_of(headers) == mark


@pytest.mark.parametrize("part", ["bytes 10-19/100", "bytes 10-12/100", "bytes 10-15/16"])
def test_a_part_may_be_shorter_than_it_was_asked_for(part: str) -> None:
    head = _understood(206, {"Content-Range": part})
    assert head.meaning is Meaning.PART
    assert head.size == int(part.rpartition("/")[2])


@pytest.mark.parametrize(
    "part", ["bytes 9-19/100", "bytes 10-20/100", "bytes 11-19/100", "bytes 10-9/100", "bytes 10-19/15", "10-19/100"]
)
def test_another_part_is_refused(part: str) -> None:
    with pytest.raises(DownloadCorrupt):
        _understood(206, {"Content-Range": part})


def test_a_part_of_another_file_is_a_change() -> None:
    headers = {"Content-Range": "bytes 10-19/100", "ETag": '"b"'}
    known = Known(100, Mark(etag='"a"'))
    assert _understood(206, headers, known=known).meaning is Meaning.CHANGED
    assert _understood(206, headers, known=Known(99, Mark())).meaning is Meaning.CHANGED
    assert _understood(206, headers, known=Known(100, Mark(etag='"b"'))).meaning is Meaning.PART


@pytest.mark.parametrize("status", [300, 304, 100, 204])
def test_no_other_status_is_a_file(status: int) -> None:
    with pytest.raises(DownloadCorrupt):
        _understood(status, {})


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "x"}, None),
        ({"RateLimit": '"api";r=0;t=55'}, 55.0),
        ({"RateLimit": "t=soon"}, None),
        ({}, None),
    ],
)
def test_when_to_come_back(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_pauses_grow_to_their_limit_and_are_never_the_same() -> None:
    retries = Retries(first_pause=1.0, longest_pause=10.0)
    assert [retries.pause(tried, jitter=1.0) for tried in range(1, 7)] == [1, 2, 4, 8, 10, 10]
    assert retries.pause(1, jitter=0.0) == 0.5
    assert len({retries.pause(3) for _ in range(10)}) > 1


def test_tries_count_from_the_last_byte() -> None:
    attempts = Attempts(Retries(most=3, first_pause=0.0))
    error = SourceUnavailable("away")
    for _ in range(5):
        attempts.gained()
        attempts.failed(error)
        attempts.failed(error)
    with pytest.raises(SourceUnavailable):
        attempts.failed(error)


def test_who_is_told_when_waits_as_long_unless_it_is_too_long() -> None:
    attempts = Attempts(Retries(first_pause=0.0, longest_retry_after=60.0))
    assert attempts.failed(SourceUnavailable("busy", details={"retry_after": 42.0})) == 42.0
    with pytest.raises(SourceUnavailable):
        attempts.failed(SourceUnavailable("busy", details={"retry_after": 61.0}))
