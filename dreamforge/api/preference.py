"""The `Prefer` header (RFC 7240), of which `wait` is known here; other preferences are passed over, as it says."""

import re

from starlette.requests import Request

from dreamforge.api.errors import HttpError

MOST_WAIT = 60
"""Seconds an answer is held at most; `wait` alone means this long."""
PARAMETER = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "`wait=30` holds the answer until the job ends or 30 s have passed, 60 at most; `wait` alone is 60. "
    "The answer says `Preference-Applied`.",
    "schema": {"type": "string"},
    "example": "wait=30",
}
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE = rf'(?:{_NAME}|"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[^\x00-\x08\x0a-\x1f\x7f])*")'
_SETTER = r"[ \t]*=[ \t]*"
_PARAMETER = rf"[ \t]*;(?:[ \t]*{_NAME}(?:{_SETTER}{_VALUE})?)?"
_PREFERENCE = re.compile(rf"({_NAME})(?:{_SETTER}({_VALUE}))?(?:{_PARAMETER})*[ \t]*")
_SECONDS = re.compile(r"[0-9]+")


def wait_of(request: Request) -> int | None:
    """How many seconds the client would have its answer held, 0..60; None when it does not ask for it.

    Raises 400 for a header that RFC 7240 does not know, and for a `wait` that is no whole number of seconds.
    """
    # Several headers are one list; of a preference that stands there twice the first counts (RFC 7240, section 2).
    wanted = parse(",".join(request.headers.getlist("prefer")))
    if "wait" not in wanted:
        return None
    seconds = wanted["wait"]
    if not seconds:
        return MOST_WAIT
    if not _SECONDS.fullmatch(seconds):
        raise HttpError(400, "The preference 'wait' takes whole seconds: wait=30.")
    digits = seconds.lstrip("0")
    return MOST_WAIT if len(digits) > 2 else min(MOST_WAIT, int(digits or "0"))


def parse(header: str) -> dict[str, str]:
    """Preferences by name, in lower case, each with its value, which may be empty. Raises 400.

    >>> parse('respond-async, Wait="10"; x=1')
    {'respond-async': '', 'wait': '10'}
    """
    found: dict[str, str] = {}
    place = 0
    while place < len(header):
        if header[place] in " \t,":
            place += 1
            continue
        match = _PREFERENCE.match(header, place)
        place = match.end() if match else place
        if match is None or header[place : place + 1] not in {"", ","}:
            raise HttpError(400, "The header Prefer is not as RFC 7240 has it: Prefer: wait=30.")
        found.setdefault(match[1].lower(), _value(match[2] or ""))
    return found


def _value(word: str) -> str:
    return re.sub(r"\\(.)", r"\1", word[1:-1]) if word.startswith('"') else word
