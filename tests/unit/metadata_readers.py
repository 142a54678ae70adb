"""What other programs make of a `parameters` text: their rules, said again here, and none of ours."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_A1111_FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_COMFY_FIELD = re.compile(r'\s*([^:]+:\s*([^"\{].*?|".*?"|\{.*?\}))\s*(,|$)')


def read_as_a1111(text: str) -> tuple[str, str, dict[str, str]]:
    """AUTOMATIC1111/stable-diffusion-webui and Forge: ``modules/infotext_utils.py``, ``re_param``,
    ``parse_generation_parameters`` and ``unquote``.
    """
    *lines, last = text.strip().split("\n")
    if len(_A1111_FIELD.findall(last)) < 3:
        lines, last = [*lines, last], ""
    parts: dict[bool, str] = {False: "", True: ""}
    in_negative = False
    for line in map(str.strip, lines):
        begins = line.startswith("Negative prompt:")
        in_negative = in_negative or begins
        rest = line[16:].strip() if begins else line
        parts[in_negative] += ("" if parts[in_negative] == "" else "\n") + rest
    fields: dict[str, str] = {}
    for name, value in _A1111_FIELD.findall(last):
        if value:
            fields[name] = json.loads(value) if value[0] == '"' == value[-1] else value
    return parts[False], parts[True], fields


def read_as_comfyui(text: str) -> tuple[str, str, dict[str, str]] | None:
    """Comfy-Org/ComfyUI_frontend: ``src/scripts/pnginfo.ts``, ``importA1111``; None where it imports nothing."""
    steps = text.rfind("\nSteps:")
    if steps < 0:
        return None
    fields: dict[str, str] = {}
    for found in _COMFY_FIELD.finditer(text[steps:].split("\n")[1]):
        parts = found[0].split(":")
        fields[parts[0].strip().lower()] = parts[1].removesuffix(",").strip()
    negative = text.rfind("\nNegative prompt:", 0, steps + 1)
    if negative < 0:
        return None
    return text[:negative].strip(), text[negative + 18 : steps].strip(), fields


def read_as_older_comfyui(text: str) -> dict[str, str]:
    """The same before July 2024. Raises ``IndexError`` where it would have thrown."""
    line = text[text.rfind("\nSteps:") :].split("\n")[1]
    parts = [part.split(":") for part in line.split(",")]
    return {part[0].strip().lower(): part[1].strip() for part in parts}


@dataclass(frozen=True)
class CivitaiMetadata:
    """What Civitai shows of an image. ``resources`` are (type, name, weight, hash)."""

    prompt: str
    negative: str
    details: dict[str, Any]
    hashes: dict[str, str]
    civitai_resources: list[dict[str, Any]]
    resources: Sequence[tuple[str, str, float | None, str | None]]


def read_as_civitai(text: str) -> CivitaiMetadata:
    """civitai/civitai: ``src/utils/metadata/automatic.metadata.ts``, ``parse``."""
    lines = _without_templates([line for line in text.split("\n") if line.strip()])
    details_line = next(line for line in lines if line.startswith("Steps: "))
    lines.remove(details_line)
    for key in ("Resources: ", "Hashed prompt: ", "Hashed Negative prompt: "):
        details_line = details_line.split(key)[0]
    hashes, details_line = _taken(re.compile(r", Hashes:\s*({[^}]+})"), details_line, {})
    civitai_resources, details_line = _taken(re.compile(r", Civitai resources:\s*(\[[^\]]+\])"), details_line, [])
    details = _details(details_line)
    prompt, *negative = [part.strip() for part in "\n".join(lines).split("Negative prompt:")]
    tags = re.findall(r"<(lora|hypernet):([a-zA-Z0-9_.\-]+):([0-9.]+)>", prompt)
    known = details.pop("Lora hashes", {})
    resources = [(type, name, float(weight), known.get(name)) for type, name, weight in tags]
    named = {name for _, name, _, _ in resources}
    resources += [("lora", name, None, hash) for name, hash in known.items() if name not in named]
    return CivitaiMetadata(prompt, " ".join(negative).strip(), details, hashes, civitai_resources, resources)


def _without_templates(lines: list[str]) -> list[str]:
    for key in ("Template: ", "Negative Template: "):
        at = next((at for at, line in enumerate(lines) if line.startswith(key)), None)
        if at is None:
            continue
        del lines[at]
        while at < len(lines) and not re.search(r"[\w\s]+: ", lines[at], re.ASCII):
            del lines[at]
    return lines


def _taken(wanted: re.Pattern[str], line: str, nothing: Any) -> tuple[Any, str]:
    found = wanted.search(line)
    return (json.loads(found[1]), wanted.sub("", line, count=1)) if found else (nothing, line)


def _details(line: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    key = value = ""
    inside = False
    for character in line:
        if character == '"':
            if inside:
                result[key], key = _details(value.strip()), ""
            inside = not inside
        elif character == ":" and not inside:
            key, value = value.strip(), ""
        elif character == "," and not inside:
            if key:
                result[key] = value.strip()
            key = value = ""
        else:
            value += character
    if key:
        result[key] = value.strip()
    return result


def words(text: str, *, without: Sequence[str] = ("\u2060", "\ufeff")) -> str:
    """A text without white space and without what cannot be seen: readers differ in what they strip."""
    for character in without:
        text = text.replace(character, "")
    return "".join(text.split())
