"""Opaque, self-checking cursors: a made-up one is refused, and so is one of another list.

The check has no key: whoever computes a cursor gets what he asks for, as long as it is a place that a row can have.
"""

import base64
import binascii
import hashlib
import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from dreamforge.api.errors import HttpError
from dreamforge.store.listing import JobPlace

MOST_CHARACTERS = 200
"""Those of the longest cursor, with room to spare."""
_CHECK_BYTES = 6
_BEYOND_INTEGERS = 2**31
"""Postgres' `integer` ends before it."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def encode_artifact_cursor(position: int, item_index: int) -> str:
    """The cursor behind an artifact: its step's position and its item's index."""
    return _encode("artifacts", position, item_index)


def decode_artifact_cursor(cursor: str) -> tuple[int, int]:
    """Inverse of ``encode_artifact_cursor``. Raises 400 for anything it has not made."""
    position, item_index = _decode("artifacts", cursor)
    if not (0 <= position < _BEYOND_INTEGERS and 0 <= item_index < _BEYOND_INTEGERS):
        raise _refusal()
    return position, item_index


def encode_job_cursor(place: JobPlace) -> str:
    """The cursor behind a job. Times are kept in whole microseconds, as Postgres has them."""
    return _encode("jobs", (place.created_at - _EPOCH) // _MICROSECOND, place.id.int)


def decode_job_cursor(cursor: str) -> JobPlace:
    """Inverse of ``encode_job_cursor``. Raises 400 for anything it has not made."""
    microseconds, identity = _decode("jobs", cursor)
    try:
        return JobPlace(created_at=_EPOCH + microseconds * _MICROSECOND, id=uuid.UUID(int=identity))
    except (ValueError, OverflowError) as error:
        raise _refusal() from error


def _encode(of: str, *place: int) -> str:
    content = json.dumps(place, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_check(of, content) + content).decode().rstrip("=")


def _decode(of: str, cursor: str) -> tuple[int, int]:
    if len(cursor) > MOST_CHARACTERS:
        raise _refusal()
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        check, content = raw[:_CHECK_BYTES], raw[_CHECK_BYTES:]
        place: Any = json.loads(content) if check == _check(of, content) else None
    except (ValueError, TypeError, RecursionError, binascii.Error) as error:
        raise _refusal() from error
    match place:
        # A bool is an int in Python.
        case [int(first), int(second)] if bool not in {type(first), type(second)}:
            return first, second
        case _:
            raise _refusal()


def _check(of: str, content: bytes) -> bytes:
    return hashlib.sha256(f"dreamforge cursor {of} ".encode() + content).digest()[:_CHECK_BYTES]


def _refusal() -> HttpError:
    return HttpError(400, "The cursor is not one of ours.")
