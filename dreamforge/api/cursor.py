"""Opaque, self-checking cursors: a made-up one is refused."""

import base64
import binascii
import hashlib
import json

from dreamforge.api.errors import HttpError

_CHECK_BYTES = 6


def encode_cursor(*place: int) -> str:
    """The cursor of a place in a list."""
    content = json.dumps(place).encode()
    return base64.urlsafe_b64encode(_check(content) + content).decode().rstrip("=")


def decode_cursor(cursor: str, *, length: int) -> tuple[int, ...]:
    """The place of a cursor. Raises 400 for one that ``encode_cursor`` has not made."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        check, content = raw[:_CHECK_BYTES], raw[_CHECK_BYTES:]
        place = tuple(json.loads(content)) if check == _check(content) else ()
    except (ValueError, TypeError, binascii.Error) as error:
        raise HttpError(400, "The cursor is not one of ours.") from error
    if len(place) != length:
        raise HttpError(400, "The cursor is not one of ours.")
    return place


def _check(content: bytes) -> bytes:
    return hashlib.sha256(b"dreamforge cursor" + content).digest()[:_CHECK_BYTES]
