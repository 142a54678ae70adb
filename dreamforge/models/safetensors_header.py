"""The header of a safetensors file, read and checked before anything loads the file.

The format (https://huggingface.co/docs/safetensors, "Format"): 8 bytes with the header's length, little-endian; the
header, a JSON object from each tensor's name to its dtype, shape and place, with `__metadata__` beside them; the
tensors' bytes, without gaps. What breaks a rule here the safetensors package would refuse too, or would spend more
memory on than a model is worth.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from dreamforge.errors import ModelCorrupt

LONGEST_HEADER = 16 * 1024 * 1024
"""Bytes. The format allows 100 MB; that of an SDXL checkpoint has 0.3 MB, and some LoRAs tell of their training."""
MOST_TENSORS = 50_000
_MOST_BRACKETS = 6 * MOST_TENSORS
"""Parts of JSON, each of which takes 30 times the memory of its text. A tensor is an object with two lists."""
MOST_DIMENSIONS = 8
LENGTH_BYTES = 8
CONVERT = (
    "Pickles can run programs when they are loaded, so they are never loaded here. Take the model's safetensors files, "
    "or convert it where you trust it: load it with diffusers and save it with "
    "save_pretrained(FOLDER, safe_serialization=True)."
)
"""What to do about a pickle."""

_ABSURD_LENGTH = 2**32
_METADATA = "__metadata__"
_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
_PICKLE = f"is a pickle. {CONVERT}"
_MAGIC = (
    (b"PK\x03\x04", "pickle", _PICKLE),
    (b"\x80", "pickle", _PICKLE),
    (b"GGUF", "gguf", "is a GGUF file, which cannot be read here. Take the model's .safetensors file."),
    (
        b"version https://git-lfs",
        "lfs_pointer",
        "is no more than a pointer to the file, which Git LFS has not fetched: `git lfs pull` fetches it.",
    ),
    (b"<", "web_page", "is a web page: the download went wrong. Many servers answer so when they want a login."),
    (b"{", "json", "is a JSON text: the download went wrong, and this may say why."),
)


@dataclass(frozen=True)
class Tensor:
    """What the header says of a tensor. ``dtype`` is the format's word, as `F16`; ``size`` is in bytes."""

    dtype: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a file holds. ``data_offset``: where the tensors' bytes begin, which go to the file's end."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    data_offset: int


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check the header of a file.

    Raises ``ModelCorrupt`` for what is no whole safetensors file; its ``details.reason`` is one of: empty, pickle,
    gguf, lfs_pointer, web_page, json, not_safetensors, header_too_large, truncated, trailing_bytes, header_invalid,
    no_tensors, too_many_tensors.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        start = stream.read(32)
        length = int.from_bytes(start[:LENGTH_BYTES], "little")
        _check_start(path.name, start, length=length, size=size)
        stream.seek(LENGTH_BYTES)
        raw = stream.read(length)
    try:
        return _checked(raw, data_size=size - LENGTH_BYTES - length)
    except _Broken as error:
        raise _corrupt(path.name, error.reason, error.words) from error


class _Broken(Exception):
    def __init__(self, words: str, *, reason: str = "header_invalid") -> None:
        super().__init__(words)
        self.reason = reason
        self.words = words


def _corrupt(name: str, reason: str, words: str) -> ModelCorrupt:
    return ModelCorrupt(f"{name} {words}", details={"file": name, "reason": reason})


def _check_start(name: str, start: bytes, *, length: int, size: int) -> None:
    if not size:
        raise _corrupt(name, "empty", "is empty.")
    # What is text or a magic number reads as a length of more bytes than any file has.
    has_header = start[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{" and length < _ABSURD_LENGTH
    if has_header and length > LONGEST_HEADER:
        most = LONGEST_HEADER // 1024**2
        raise _corrupt(name, "header_too_large", f"says that its header has {length} bytes; {most} MiB are allowed.")
    if has_header and LENGTH_BYTES + length > size:
        raise _corrupt(name, "truncated", f"ends within its header, after {size} bytes: it is not whole.")
    if has_header:
        return
    for magic, reason, words in _MAGIC:
        if start.lstrip().startswith(magic):
            raise _corrupt(name, reason, words)
    raise _corrupt(name, "not_safetensors", "is no safetensors file.")


def _checked(raw: bytes, *, data_size: int) -> SafetensorsHeader:
    if raw.count(b"[") + raw.count(b"{") > _MOST_BRACKETS:
        raise _Broken(f"has a header of more parts than {MOST_TENSORS} tensors have.", reason="too_many_tensors")
    content = _parsed(raw)
    metadata = content.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Broken("has metadata that are not all text.")
    if not content:
        raise _Broken("holds no tensors.", reason="no_tensors")
    if len(content) > MOST_TENSORS:
        words = f"holds {len(content)} tensors; {MOST_TENSORS} are allowed."
        raise _Broken(words, reason="too_many_tensors")
    placed = sorted((_placed(name, entry) for name, entry in content.items()), key=lambda found: found[:2])
    _check_places(placed, data_size=data_size)
    return SafetensorsHeader(
        tensors={name: tensor for _, _, name, tensor in placed},
        metadata=metadata,
        data_offset=LENGTH_BYTES + len(raw),
    )


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise _Broken("has a header that is no JSON object.") from error
    if not isinstance(content, dict):
        raise _Broken("has a header that is no JSON object.")
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise _Broken("names something twice in its header.")
    return content


def _no_number(word: str) -> None:
    raise ValueError(word)


def _placed(name: str, entry: object) -> tuple[int, int, str, Tensor]:
    """The tensor with its first byte and the one behind its last."""
    shown = name[:100]
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end], **more} if not more:
            pass
        case _:
            raise _Broken(f"does not say of {shown!r} what it has to.")
    if dtype not in _BITS:
        raise _Broken(f"has a tensor {shown!r} of an unknown type.")
    if not all(_is_count(number) for number in (begin, end, *shape)) or len(shape) > MOST_DIMENSIONS:
        raise _Broken(f"has a tensor {shown!r} with an odd shape or place.")
    bits = prod(shape) * _BITS[dtype]
    if bits % 8 or end - begin != bits // 8:
        raise _Broken(f"has a tensor {shown!r} whose place does not fit its shape.")
    return begin, end, name, Tensor(dtype=dtype, shape=tuple(shape), size=end - begin)


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63


def _check_places(placed: list[tuple[int, int, str, Tensor]], *, data_size: int) -> None:
    reached = 0
    for begin, end, name, _ in placed:
        if begin != reached:
            raise _Broken(f"has a tensor {name[:100]!r} that overlaps another, or a gap before it.")
        reached = end
    if reached > data_size:
        words = f"ends too soon: {reached - data_size} of {reached} bytes are missing. Download it again."
        raise _Broken(words, reason="truncated")
    if reached < data_size:
        words = f"has {data_size - reached} bytes behind its last tensor that belong to nothing."
        raise _Broken(words, reason="trailing_bytes")
