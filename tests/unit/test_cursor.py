"""Cursors of lists."""

import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given
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


@given(st.integers(0, 10**9), st.integers(0, 10**9))
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
