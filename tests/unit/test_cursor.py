"""Cursors of lists."""

import base64
import contextlib
import hashlib
import json
import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dreamforge.api.cursor import (
    decode_artifact_cursor,
    decode_job_cursor,
    encode_artifact_cursor,
    encode_job_cursor,
)
from dreamforge.api.errors import HttpError
from dreamforge.store.listing import JobPlace

SOMEWHERE = JobPlace(created_at=datetime(2026, 3, 1, 12, 0, 0, 123457, UTC), id=uuid.UUID(int=7))


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_a_cursor_comes_back_as_it_was_given(position: int, item: int) -> None:
    assert decode_artifact_cursor(encode_artifact_cursor(position, item)) == (position, item)


@given(st.datetimes(timezones=st.just(UTC)), st.uuids())
def test_a_job_s_cursor_keeps_every_microsecond_and_fits_the_query(created_at: datetime, id: uuid.UUID) -> None:
    place = JobPlace(created_at=created_at, id=id)
    cursor = encode_job_cursor(place)
    assert decode_job_cursor(cursor) == place
    assert len(cursor) <= 200


@given(st.text(max_size=80))
def test_a_made_up_one_is_refused(cursor: str) -> None:
    for decode in (decode_artifact_cursor, decode_job_cursor):
        with pytest.raises(HttpError) as caught:
            decode(cursor)
        assert caught.value.status_code == 400


def test_a_changed_one_is_refused() -> None:
    cursor = encode_job_cursor(SOMEWHERE)
    changed = cursor[:-3] + ("A" if cursor[-3] != "A" else "B") + cursor[-2:]
    with pytest.raises(HttpError):
        decode_job_cursor(changed)


def test_one_of_another_list_is_refused() -> None:
    with pytest.raises(HttpError):
        decode_artifact_cursor(encode_job_cursor(SOMEWHERE))
    with pytest.raises(HttpError):
        decode_job_cursor(encode_artifact_cursor(0, 1))


def _computed(of: str, place: object) -> str:
    """What anybody can make who has read the code: the check holds."""
    content = json.dumps(place).encode()
    check = hashlib.sha256(f"dreamforge cursor {of} ".encode() + content).digest()[:6]
    return base64.urlsafe_b64encode(check + content).decode().rstrip("=")


@given(st.integers(), st.integers())
@example(-1, 5)
@example(5, -1)
@example(2**31, 0)
@example(0, 2**31)
@example(10**30, 5)
def test_a_computed_one_tells_a_place_that_a_row_can_have(position: int, item: int) -> None:
    cursor = _computed("artifacts", [position, item])
    if 0 <= position < 2**31 and 0 <= item < 2**31:
        assert decode_artifact_cursor(cursor) == (position, item)
    else:
        with pytest.raises(HttpError):
            decode_artifact_cursor(cursor)


@given(st.integers(), st.integers())
@example(2**70, 5)
@example(0, 2**128)
def test_a_computed_one_of_a_job_is_a_time_and_an_id_or_refused(microseconds: int, identity: int) -> None:
    with contextlib.suppress(HttpError):
        assert decode_job_cursor(_computed("jobs", [microseconds, identity])).id.int == identity


@pytest.mark.parametrize("place", [[True, False], [0, True], [1], [1, 2, 3], [1.0, 2], ["1", 2], {}, None])
def test_a_computed_one_of_anything_else_is_refused(place: object) -> None:
    for of, decode in (("artifacts", decode_artifact_cursor), ("jobs", decode_job_cursor)):
        with pytest.raises(HttpError):
            decode(_computed(of, place))


def test_one_that_is_too_long_is_refused_whatever_it_holds() -> None:
    cursor = _computed("artifacts", [1, 2])
    assert decode_artifact_cursor(cursor) == (1, 2)
    with pytest.raises(HttpError):
        decode_artifact_cursor(cursor + "=" * 201)
