"""Pixels to PNG, and the texts beside them."""

import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dreamforge.images.encode import encode_png


def _chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Type and content of each chunk, its CRC checked (PNG, third edition, 5.3)."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks: list[tuple[bytes, bytes]] = []
    at = 8
    while at < len(png):
        length, kind = struct.unpack_from("!I4s", png, at)
        content = png[at + 8 : at + 8 + length]
        (crc,) = struct.unpack_from("!I", png, at + 8 + length)
        assert crc == zlib.crc32(kind + content)
        chunks.append((kind, content))
        at += 12 + length
    return chunks


def _encoded(text: dict[str, str]) -> bytes:
    return encode_png(bytes(3), width=1, height=1, text=text)


@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_the_pixels_come_back_as_they_were(width: int, height: int, data: st.DataObject) -> None:
    size = width * height * 3
    pixels = data.draw(st.binary(min_size=size, max_size=size))
    with Image.open(io.BytesIO(encode_png(pixels, width=width, height=height, text={}))) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (width, height))
        assert image.tobytes() == pixels


def test_latin_1_goes_into_text_and_the_rest_into_international_text() -> None:
    kinds = {
        content.split(b"\0")[0]: (kind, content)
        for kind, content in _chunks(_encoded({"plain": "a café, 10 µm", "wide": "森の狐 🦊"}))
    }
    assert kinds[b"plain"] == (b"tEXt", b"plain\0" + "a café, 10 µm".encode("latin-1"))
    # Keyword, uncompressed, method 0, no language, no translated keyword, UTF-8.
    assert kinds[b"wide"] == (b"iTXt", b"wide\0\0\0\0\0" + "森の狐 🦊".encode())


def test_texts_stand_before_the_pixels() -> None:
    kinds = [kind for kind, _ in _chunks(_encoded({"parameters": "x", "dreamforge": "狐"}))]
    assert kinds == [b"IHDR", b"tEXt", b"iTXt", b"IDAT", b"IEND"]


def test_pixels_are_compressed_for_speed() -> None:
    (content,) = [content for kind, content in _chunks(_encoded({})) if kind == b"IDAT"]
    # FLEVEL, the two highest bits of zlib's second byte: 0 is the fastest (RFC 1950, 2.2).
    assert content[1] >> 6 == 0


@pytest.mark.parametrize("size", [0, 11, 13])
def test_pixels_of_another_size_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="data"):
        encode_png(bytes(size), width=2, height=2, text={})
