"""The `Idempotency-Key` header, and what makes two bodies the same."""

import hashlib
import json
import re
from typing import Any

from starlette.requests import Request

from dreamforge.api.errors import HttpError
from dreamforge.store.idempotency import IdempotencyKey

HEADER = "Idempotency-Key"
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
PARAMETER = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "1 to 255 visible ASCII characters of your own. Posting the same body with the same key again makes "
    "no second job: it answers with the first one, and `Idempotency-Replayed: true`.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[\\x21-\\x7e]+$"},
    "example": "5b2f1c1e-order-17",
}


async def key_of(request: Request, *, ttl: int) -> IdempotencyKey | None:
    """The request's key with the fingerprint of its body, None when it has none. Raises 400 for what is no key."""
    given = request.headers.getlist(HEADER)
    if not given:
        return None
    if len(given) > 1:
        raise HttpError(400, f"Send one {HEADER}.")
    if not _KEY.fullmatch(given[0]):
        raise HttpError(400, f"An {HEADER} is 1 to 255 visible ASCII characters.")
    return IdempotencyKey(
        key_hash=hashlib.sha256(given[0].encode()).hexdigest(),
        fingerprint=fingerprint(await request.json()),
        ttl=ttl,
    )


def fingerprint(body: Any) -> str:
    """The sha256, in hex, of a body's canonical JSON: keys sorted, no spaces, ASCII. What was left out stays out.

    >>> fingerprint({"b": [1, 2], "a": "x"}) == fingerprint({"a": "x", "b": [1, 2]})
    True
    """
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
