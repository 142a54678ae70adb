"""What came from outside, as it can be kept and told on. Pure."""

import math
import re
from typing import Any

_DEEPEST = 16
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(value: Any, *, depth: int = 0) -> Any:
    """The value, of JSON, as Postgres can keep it and clients can read it: no NUL, no lone surrogate, no number past
    every float, no nesting without end. Names of files and words of libraries come through here, and what image files
    say.

    Raises ``ValueError`` for what is not finite or goes deeper than 16.
    """
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    match value:
        case str():
            return _UNSTORABLE.sub("\ufffd", value)
        case float() if not math.isfinite(value):
            raise ValueError("a number is too large")
        case dict():
            return {storable(name): storable(inner, depth=depth + 1) for name, inner in value.items()}
        case list():
            return [storable(inner, depth=depth + 1) for inner in value]
        case _:
            return value
