"""EXIF's `UserComment`, by the rules of those who write and read it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL.Image import Exif

from dreamforge.images.exif import exif_with, user_comment_of
from tests.unit.manifests import CHARACTERS


def _exif(comment: object) -> Exif:
    exif = Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    read = Exif()
    read.load(exif.tobytes())
    return read


def _comment(written: bytes) -> bytes:
    exif = Exif()
    exif.load(written)
    return exif.get_ifd(0x8769)[0x9286]


def _read_as_piexif(comment: bytes) -> str:
    """What AUTOMATIC1111 reads by: hMatoba/Piexif ``piexif/helper.py``, ``UserComment.load``."""
    encodings = {b"ASCII\0\0\0": "ascii", b"JIS\0\0\0\0\0": "shift_jis", b"UNICODE\0": "utf_16_be"}
    return comment[8:].decode(encodings[comment[:8]])


def _read_as_civitai(comment: bytes) -> str:
    """civitai/civitai ``src/utils/metadata/automatic.metadata.ts``, ``decodeBigEndianUTF16``: the bytes of all of it,
    swapped and read as little endian; what stands for the character code is noise before the prompt.
    """
    swapped = bytearray(comment)
    swapped[::2], swapped[1::2] = comment[1::2], comment[::2]
    return swapped.decode("utf-16-le", "replace")


@given(st.text(CHARACTERS, min_size=1))
def test_what_is_written_is_read_by_piexifs_rule_and_by_civitais(text: str) -> None:
    comment = _comment(exif_with(text))
    assert _read_as_piexif(comment) == text
    assert _read_as_civitai(comment)[4:] == text


@given(st.text(CHARACTERS, max_size=40).map(lambda text: f"{text}\nSteps: 1"))
def test_what_is_written_comes_back(text: str) -> None:
    exif = Exif()
    exif.load(exif_with(text))
    assert user_comment_of(exif) == text


@pytest.mark.parametrize(
    "comment",
    [
        b"ASCII\0\0\0a fox",
        b"\0\0\0\0\0\0\0\0a fox\0\0",
        b"UNICODE\0" + "a fox".encode("utf-16-le"),
        b"UNICODE\0" + "a fox".encode("utf-16"),
        b"UNICODE\0\xfe\xff" + "a fox".encode("utf-16-be"),
        b"a fox",
        "a fox",
    ],
)
def test_what_others_write_is_understood(comment: object) -> None:
    assert user_comment_of(_exif(comment)) == "a fox"


def test_characters_that_end_in_a_zero_byte_do_not_turn_the_order_around() -> None:
    text = "一" * 500 + "\nSteps: 3"
    for encoding in ("utf-16-be", "utf-16-le"):
        assert user_comment_of(_exif(b"UNICODE\0" + text.encode(encoding))) == text


@pytest.mark.parametrize("comment", [b"", b"UNICODE\0", b"ASCII\0\0\0", 7])
def test_where_there_is_none_none_is_found(comment: object) -> None:
    assert user_comment_of(_exif(comment)) is None
    assert user_comment_of(Exif()) is None


@given(st.binary(max_size=40))
def test_any_comment_is_read_somehow(comment: bytes) -> None:
    assert isinstance(user_comment_of(_exif(comment)), str | None)
