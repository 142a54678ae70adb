"""What is a whole safetensors file, and what is told of anything else."""

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from dreamforge.errors import ModelCorrupt
from dreamforge.models.safetensors_header import MOST_TENSORS, read_header
from tests import weights

SHAPES = {"b": (2, 3), "a": (4,), "scalar": (), "nothing": (0, 7)}


def _reason(path: Path) -> str:
    with pytest.raises(ModelCorrupt) as caught:
        read_header(path)
    assert caught.value.code == "model_corrupt"
    assert path.name in caught.value.message
    assert caught.value.details["file"] == path.name
    return caught.value.details["reason"]


def _file(folder: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def _entry(begin: Any, end: Any, *, shape: Any = (4,), dtype: Any = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_whole_file_tells_what_it_holds(tmp_path: Path) -> None:
    path = weights.write(tmp_path / "x.safetensors", SHAPES, metadata={"format": "pt"})
    header = read_header(path)
    assert {name: tensor.shape for name, tensor in header.tensors.items()} == SHAPES
    assert header.tensors["b"].size == 12
    assert header.metadata == {"format": "pt"}
    assert path.stat().st_size - header.data_offset == sum(tensor.size for tensor in header.tensors.values())
    with safe_open(path, framework="np") as opened:
        assert set(opened.keys()) == set(SHAPES), "and the library agrees"


def test_a_file_may_be_longer_than_memory(tmp_path: Path) -> None:
    path = weights.write(tmp_path / "x.safetensors", {"a": (2**35,)})
    assert read_header(path).tensors["a"].size == 2**36


@given(cut=st.integers(min_value=0))
def test_cut_anywhere_it_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = weights.write(tmp_path_factory.mktemp("cut") / "x.safetensors", SHAPES)
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % len(whole)])
    assert _reason(path) in {"truncated", "empty", "not_safetensors"}


@given(place=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
def test_a_flipped_bit_passes_only_where_the_library_lets_it(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    path = weights.write(tmp_path_factory.mktemp("bit") / "x.safetensors", SHAPES, metadata={"format": "pt"})
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    try:
        names = set(read_header(path).tensors)
    except ModelCorrupt:
        return
    try:
        with safe_open(path, framework="np") as opened:
            assert set(opened.keys()) == names
    except SafetensorError as error:
        pytest.fail(f"the library refuses it: {error}")


@given(content=st.binary(max_size=64))
def test_of_any_bytes_the_reason_is_told(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    path.write_bytes(content)
    assert _reason(path)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": _entry(0, 4), "b": _entry(2, 6)}, 6),
        ({"a": _entry(0, 4), "b": _entry(5, 9)}, 9),
        ({"a": _entry(1, 5)}, 5),
        ({"a": _entry(0, 4), "b": _entry(0, 4)}, 4),
        ({"a": _entry(4, 0)}, 4),
        ({"a": _entry(0, 3)}, 3),
        ({"a": _entry(0, 4, shape=[-4])}, 4),
        ({"a": _entry(0, 4, shape=[2**63, 2**63, 0])}, 4),
        ({"a": _entry(0, 4, shape=[1] * 8 + [4])}, 4),
        ({"a": _entry(0, 4, shape=[4.0])}, 4),
        ({"a": _entry(False, 4)}, 4),
        ({"a": _entry(0, 1, shape=[True])}, 1),
        ({"a": _entry(0, 4, dtype="Q4")}, 4),
        ({"a": _entry(0, 4, dtype=["U8"])}, 4),
        ({"a": _entry(0, 1, dtype="F4", shape=[3])}, 1),
        ({"a": {**_entry(0, 4), "more": 1}}, 4),
        ({"a": {"dtype": "U8", "shape": [4]}}, 4),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4, 8]}}, 4),
        ({"a": []}, 4),
        ({"a": _entry(0, 4), "__metadata__": {"x": 1}}, 4),
        ({"a": _entry(0, 4), "__metadata__": "x"}, 4),
        (b'{"a": ' + json.dumps(_entry(0, 4)).encode() + b', "a": ' + json.dumps(_entry(0, 4)).encode() + b"}", 4),
        (b'{"a": {"dtype": "U8", "dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}', 4),
        (b'{"a": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 4]}}', 4),
        (b'{"a": ' + b"[" * 100_000, 0),
        (b'{"a": ' + b"9" * 10_000 + b"}", 0),
        (b'{"\xff": 1}', 0),
        (b"{}x", 0),
    ],
)
def test_a_header_that_breaks_a_rule_is_refused(tmp_path: Path, header: Any, data: int) -> None:
    assert _reason(_file(tmp_path, header, b"\0" * data)) == "header_invalid"


def test_what_is_missing_or_too_much_is_told_apart(tmp_path: Path) -> None:
    assert _reason(_file(tmp_path, {"a": _entry(0, 4)}, b"123")) == "truncated"
    assert _reason(_file(tmp_path, {"a": _entry(0, 4)}, b"12345")) == "trailing_bytes"
    assert _reason(_file(tmp_path, {})) == "no_tensors"
    assert _reason(_file(tmp_path, {"__metadata__": {}})) == "no_tensors"


def test_a_header_is_bounded(tmp_path: Path) -> None:
    path = _file(tmp_path, b'{"a": 1}', length=100 * 1000 * 1000)
    with path.open("r+b") as stream:
        stream.truncate(200 * 1000 * 1000)
    assert _reason(path) == "header_too_large"
    with pytest.raises(ModelCorrupt, match="its header has 16777344 bytes; 16 MiB are allowed"):
        read_header(_file(tmp_path, b'{"a": 1}', length=16 * 1024**2 + 0x80))
    assert _reason(_file(tmp_path, b'{"a": [' + b"[]," * 4 * 1024**2 + b"[]]}")) == "too_many_tensors"
    told = {
        "__metadata__": {"ss_tag_frequency": json.dumps({"a": {"tag, " * 9: 1}}) * 90_000},
        "a": _entry(0, 0, shape=[0]),
    }
    assert read_header(_file(tmp_path, told)).tensors.keys() == {"a"}
    entries = {str(index): _entry(0, 0, shape=[0]) for index in range(MOST_TENSORS + 1)}
    assert _reason(_file(tmp_path, entries)) == "too_many_tensors"
    del entries["0"]
    assert len(read_header(_file(tmp_path, entries)).tensors) == MOST_TENSORS


def _zipped() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": {}}, protocol=2))
    return target.getvalue()


@pytest.mark.parametrize(
    ("content", "reason", "words"),
    [
        (_zipped(), "pickle", "save_pretrained"),
        (pickle.dumps({"state_dict": {}}, protocol=2), "pickle", "never loaded here"),
        (b"GGUF\x03\0\0\0\0", "gguf", "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "lfs_pointer", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web_page", "the download went wrong"),
        (b"\n <html>", "web_page", "the download went wrong"),
        (b'{"err":{"message":"Unauthorized"}}', "json", "the download went wrong"),
        (b"\x93NUMPY\x01\0v\0", "not_safetensors", "is no safetensors file"),
        (b"", "empty", "is empty"),
    ],
)
def test_what_it_is_instead_is_told(tmp_path: Path, content: bytes, reason: str, words: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelCorrupt, match=words):
        read_header(path)
    assert _reason(path) == reason
