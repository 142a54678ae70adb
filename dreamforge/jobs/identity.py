"""Ids as they come from outside."""

import re
import uuid

_CANONICAL = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def uuid_of(text: str) -> uuid.UUID | None:
    """The UUID that is written in its canonical form, None for any other text.

    In either case, as RFC 9562, section 4, has it. ``uuid.UUID`` alone also reads braces, `urn:uuid:`, digits without
    dashes or with dashes anywhere, and digits of other scripts: one job would have many addresses.

    >>> uuid_of("{01936b2e-7c1a-7b5e-9d0c-3f6a1f0b2c3d}") is None
    True
    """
    return uuid.UUID(text) if _CANONICAL.fullmatch(text) else None
