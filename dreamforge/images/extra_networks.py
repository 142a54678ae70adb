"""`<lora:name:weight>`: LoRAs as a prompt of AUTOMATIC1111 names them.

Its web UI takes such a tag out of the prompt and loads the LoRA (``modules/extra_networks.py``); Civitai finds them by
``automaticExtraNetsRegex`` of ``src/utils/metadata/automatic.metadata.ts``, in names of `[a-zA-Z0-9_.-]` alone.
"""

import contextlib
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

_WORD_JOINER = "\u2060"
_TAG = re.compile(r"<(lora|lyco|hypernet):([^:<>\n]{1,256})((?::[^:<>\n]{0,64}){0,4})>", re.IGNORECASE)
_BEGIN = re.compile(r"<(lora|lyco|hypernet)(?=:)", re.IGNORECASE)
# Open to the end, it would take in the tags that are put behind it.
_OPEN = re.compile(r"<(\w+)(?=:[^>]*\Z)")
_OPEN_END = re.compile(r"<\w+:.*", re.DOTALL)
_UNSAFE = re.compile(r"[^a-zA-Z0-9_.-]+")


@dataclass(frozen=True)
class LoraTag:
    """A LoRA, by its name and with its weight."""

    name: str
    weight: float = 1.0


def as_tag(tag: LoraTag) -> str:
    """The tag's text. Civitai knows no exponents."""
    weight = f"{tag.weight:.4f}".rstrip("0").rstrip(".")
    return f"<lora:{tag.name}:{weight}>"


def safe_names(names: Sequence[str]) -> list[str]:
    """The names as Civitai finds them, each once."""
    safe: list[str] = []
    for name in names:
        wanted = unique = _UNSAFE.sub("_", name) or "lora"
        number = 2
        while unique in safe:
            unique, number = f"{wanted}_{number}", number + 1
        safe.append(unique)
    return safe


def taken_out(prompt: str) -> tuple[str, tuple[LoraTag, ...]]:
    """The prompt without its tags, and the LoRAs among them."""
    tags = tuple(_tag(found) for found in _TAG.finditer(prompt) if found[1].lower() != "hypernet")
    return (_TAG.sub("", prompt).strip(), tags) if _TAG.search(prompt) else (prompt, ())


def parted(prompt: str) -> tuple[str, list[str]]:
    """The prompt's words, and its tags as they stand there. A blank is left where one stood: what was on both sides of
    it must not become another.
    """
    found = [tag[0] for tag in _TAG.finditer(prompt)]
    return (_TAG.sub(" ", prompt).strip(), found) if found else (prompt, [])


def without_open_end(prompt: str) -> str:
    """The prompt as far as no tag is begun that does not end: it would take in those that are put behind it."""
    closed = prompt.rfind(">") + 1
    return prompt[:closed] + _OPEN_END.sub("…", prompt[closed:])


def harmless_tags(prompt: str, *, allowed: Collection[LoraTag]) -> tuple[str, list[LoraTag]]:
    """The prompt in which only those tags are tags that are ``allowed``, each once, and those that there are.

    Whatever else looks like one gets a word joiner before its colon: a reader would claim a LoRA that was not used.
    """
    there: list[LoraTag] = []

    def kept(found: re.Match[str]) -> str:
        tag = _tag(found)
        if found[1].lower() == "lora" and tag in allowed and tag not in there:
            there.append(tag)
            return as_tag(tag).replace("<", "\0")
        return found[0]

    marked = _BEGIN.sub(rf"<\1{_WORD_JOINER}", _TAG.sub(kept, prompt.replace("\0", "")))
    marked = _OPEN.sub(rf"<\1{_WORD_JOINER}", marked)
    return marked.replace("\0", "<"), there


def _tag(found: re.Match[str]) -> LoraTag:
    weight = 1.0
    with contextlib.suppress(ValueError):
        # `te=0.5` and what else newer ones allow is left aside.
        given = float(found[3].split(":")[1] if found[3] else 1.0)
        weight = given if math.isfinite(given) else 1.0
    return LoraTag(found[2].strip(), weight)
