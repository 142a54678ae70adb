"""Cursors of lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamforge.api.cursor import decode_cursor, encode_cursor
from dreamforge.api.errors import HttpError


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_cursor_comes_back_as_it_was_given(position: int, item: int) -> None:
    assert decode_cursor(encode_cursor(position, item), length=2) == (position, item)


@given(st.text(max_size=80))
def test_a_made_up_one_is_refused(cursor: str) -> None:
    with pytest.raises(HttpError) as caught:
        decode_cursor(cursor, length=2)
    assert caught.value.status_code == 400


def test_a_changed_one_is_refused() -> None:
    cursor = encode_cursor(1, 2)
    changed = cursor[:-3] + ("A" if cursor[-3] != "A" else "B") + cursor[-2:]
    with pytest.raises(HttpError):
        decode_cursor(changed, length=2)
