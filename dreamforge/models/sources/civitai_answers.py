"""What Civitai says of a version, read with care: any of it may be missing or of another kind."""

import re
from dataclasses import dataclass
from typing import Any

from dreamforge.errors import SourceNotFound, SourceUnavailable

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_AIR = re.compile(r"urn:air:[\w.-]+:[\w.-]+:civitai:\d+@\d+", re.ASCII)
_SDXL = ("SDXL", "Illustrious", "NoobAI")
_ALSO_SDXL = frozenset({"Pony", "Other"})
_LONGEST = 200
_MOST_WORDS = 50
_KILOBYTE = 1024


@dataclass(frozen=True)
class File:
    """One of a version's files. ``size`` in bytes, where Civitai knows it to the byte; ``sha256`` in lower case."""

    id: int
    name: str
    type: str
    format: str
    precision: str
    size_kb: float
    sha256: str | None
    is_primary: bool
    address: str | None

    @property
    def size(self) -> int | None:
        """In bytes; None where what is said is no whole number of them."""
        exact = self.size_kb * _KILOBYTE
        return int(exact) if exact > 0 and exact.is_integer() else None


@dataclass(frozen=True)
class Version:
    """One version of a model. ``type``: the model's, as `LORA`. ``early_access_ends``: a date, or nothing."""

    id: int
    model_id: int
    name: str
    model_name: str
    type: str
    base_model: str
    base_model_type: str
    usage_control: str
    early_access_ends: str
    air: str
    trained_words: tuple[str, ...]
    files: tuple[File, ...]

    @property
    def title(self) -> str:
        """What to call it in a sentence."""
        return f"{self.model_name} {self.name}".strip() or f"Version {self.id}"


def read_newest(said: dict[str, Any], *, model: int) -> int:
    """The number of the version to take of `GET /api/v1/models/{id}`, which lists them from the newest on.

    The newest for SDXL that everybody may have; where there is none such, the newest, and why not is said of that one.
    """
    versions = [_dict(version) for version in _list(said.get("modelVersions"))]
    published = [version for version in versions if version.get("status", "Published") == "Published"]
    usable = [version for version in published if _is_open(version) and is_sdxl(_text(version.get("baseModel")))]
    numbers = [number for version in (*usable, *published) if (number := _number(version.get("id")))]
    if not numbers:
        raise SourceNotFound(f"Model {model} of Civitai has no published version.")
    return numbers[0]


def is_sdxl(base_model: str) -> bool:
    """True for the families that are SDXL's, by Civitai's names, and for what it has no name for.

    Those whose ecosystem is sdxl in src/shared/constants/base-model.constants.ts of civitai/civitai. Pony V7 is not.
    """
    return base_model.startswith(_SDXL) or base_model in _ALSO_SDXL


def _is_open(version: dict[str, Any]) -> bool:
    return version.get("availability", "Public") in ("Public", "Unsearchable")


def read_version(said: dict[str, Any], *, version: int) -> Version:
    """The answer of `GET /api/v1/model-versions/{id}`."""
    number, model_id = _number(said.get("id")), _number(said.get("modelId"))
    if number is None or number != version or model_id is None:
        raise SourceUnavailable("Civitai answers with something else than a version of a model. Try again later.")
    model = _dict(said.get("model"))
    kind = _text(model.get("type"))
    air = said.get("air")
    is_air = isinstance(air, str) and _AIR.fullmatch(air) is not None
    return Version(
        id=number,
        model_id=model_id,
        name=_text(said.get("name")),
        model_name=_text(model.get("name")),
        type=kind,
        base_model=_text(said.get("baseModel")),
        base_model_type=_text(said.get("baseModelType")),
        usage_control=_text(said.get("usageControl")) or "Download",
        early_access_ends=_text(said.get("earlyAccessEndsAt"))[:10],
        air=str(air) if is_air else f"urn:air:sdxl:{kind.lower() or 'model'}:civitai:{model_id}@{number}",
        trained_words=tuple(_text(word) for word in _list(said.get("trainedWords"))[:_MOST_WORDS]),
        files=tuple(_file(_dict(file)) for file in _list(said.get("files"))),
    )


def _file(said: dict[str, Any]) -> File:
    told, size = _dict(said.get("metadata")), said.get("sizeKB")
    sha256 = _dict(said.get("hashes")).get("SHA256")
    address = said.get("downloadUrl")
    return File(
        id=_number(said.get("id")) or 0,
        name=_text(said.get("name")),
        type=_text(said.get("type")),
        format=_text(told.get("format")),
        precision=_text(told.get("fp")),
        size_kb=float(size) if isinstance(size, int | float) and 0 < size < 2**40 else 0.0,
        sha256=sha256.lower() if isinstance(sha256, str) and _SHA256.fullmatch(sha256) else None,
        is_primary=said.get("primary") is True,
        address=address if isinstance(address, str) else None,
    )


def _text(value: object) -> str:
    """For a sentence or the registry: one line of what can be printed."""
    if not isinstance(value, str):
        return ""
    return "".join(letter for letter in value[:_LONGEST] if letter.isprintable()).strip()


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53 else None


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
