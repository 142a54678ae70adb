"""Answers that a client may keep: an ETag over the content, 304 for who has it (RFC 9110, 8.8.3 and 13.1.2)."""

import hashlib
import re
from typing import Annotated

from fastapi import Header, Request, Response
from pydantic import BaseModel

IfNoneMatch = Annotated[
    str | None,
    Header(alias="If-None-Match", description="ETags that are known already, or `*`.", examples=['"9f86d081"']),
]
"""For the document: several of the header are read by ``is_known`` itself."""
_TAG = re.compile(r'\s*(?:W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(?:,|$)')


def tagged(request: Request, content: BaseModel) -> Response:
    """The content as JSON with a strong ETag, or an empty 304 when `If-None-Match` names it."""
    body = content.model_dump_json().encode()
    tag = hashlib.sha256(body).hexdigest()[:32]
    # Kept, but asked about each time.
    headers = {"ETag": f'"{tag}"', "Cache-Control": "no-cache"}
    if is_known(request, tag):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


def is_known(request: Request, tag: str) -> bool:
    """True when `If-None-Match` names the tag, which is given without its quotes."""
    return _names(", ".join(request.headers.getlist("If-None-Match")), tag)


def _names(if_none_match: str, tag: str) -> bool:
    """Compared weakly, as the RFC wants it here. What is no list of tags names nothing."""
    if if_none_match.strip() == "*":
        return True
    place, names_it = 0, False
    while place < len(if_none_match):
        match = _TAG.match(if_none_match, place)
        if match is None:
            return False
        names_it = names_it or match[1] == tag
        place = match.end()
    return names_it
