"""The `parameters` text taken apart, whoever wrote it; see `dreamforge.images.parameters_text`."""

import json
import re
from dataclasses import dataclass

from dreamforge.images.extra_networks import LoraTag, taken_out
from dreamforge.jobs.storable import storable

_NEGATIVE = "Negative prompt:"
_FEWEST_FIELDS = 3
# As ``re_param`` of ``modules/infotext_utils.py``, but a key has an end, and JSON stays in one piece.
_FIELD = re.compile(
    r'\s{0,8}(\w[\w /-]{1,63}):\s{0,8}("(?:[^"\\]|\\.)+"|\{[^{}]*\}|\[[^\[\]]*\]|[^,]*)(?:,|$)', re.DOTALL
)
_JOINED = re.compile("(Negative prompt|Steps|Template|<lora|<lyco|<hypernet)\u2060(?=:)", re.IGNORECASE)


@dataclass(frozen=True)
class A1111Parameters:
    """A `parameters` text in its parts.

    ``fields`` are the last line's, as they stand there; ``loras`` those of the prompt, which is without their tags.
    """

    prompt: str
    negative_prompt: str
    fields: dict[str, str]
    loras: tuple[LoraTag, ...] = ()


def parse_parameters(text: str) -> A1111Parameters:
    """Take a text apart as A1111 does. A text without a line of fields is a prompt alone."""
    *lines, last = text.strip().split("\n")
    pairs: list[tuple[str, str]] = _FIELD.findall(last)
    if len(pairs) < _FEWEST_FIELDS:
        lines, pairs = [*lines, last], []
    stripped = [line.strip() for line in lines]
    border = next((at for at, line in enumerate(stripped) if line.startswith(_NEGATIVE)), len(stripped))
    prompt, loras = taken_out("\n".join(stripped[:border]).strip())
    negative = "\n".join(stripped[border:]).removeprefix(_NEGATIVE).strip()
    return A1111Parameters(
        prompt=_JOINED.sub(r"\1", prompt),
        negative_prompt=_JOINED.sub(r"\1", negative),
        fields={name: _unquoted(value) for name, value in pairs},
        loras=loras,
    )


def _unquoted(value: str) -> str:
    if not (value.startswith('"') and value.endswith('"')):
        return value
    try:
        return str(storable(json.loads(value)))
    except ValueError:
        return value
