"""Pixels to files, and the texts beside them."""

import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dreamforge.images.encode import encode
from dreamforge.images.exif import MOST_COMMENT
from dreamforge.images.reading import read_image
from dreamforge.jobs.image_format import IMAGE_FORMATS
from tests.unit.manifests import CHARACTERS

FORMATS = sorted(IMAGE_FORMATS)


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


def _encoded(format: str, parameters: str = "", manifest: str = "", *, quality: int = 90) -> bytes:
    return encode(
        _gradient(), width=64, height=48, format=format, quality=quality, parameters=parameters, manifest=manifest
    )


def _gradient() -> bytes:
    return bytes(value for y in range(48) for x in range(64) for value in (x * 4, y * 5, 128))


def _opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
    return image


@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_a_pngs_pixels_come_back_as_they_were(width: int, height: int, data: st.DataObject) -> None:
    size = width * height * 3
    pixels = data.draw(st.binary(min_size=size, max_size=size))
    image = _opened(encode(pixels, width=width, height=height, format="png"))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (width, height))
    assert image.tobytes() == pixels


@pytest.mark.parametrize(("format", "name"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_every_format_shows_the_picture_and_holds_nothing_that_was_not_given(format: str, name: str) -> None:
    image = _opened(_encoded(format))
    assert (image.format, image.mode, image.size) == (name, "RGB", (64, 48))
    off = [abs(one - other) for one, other in zip(image.tobytes(), _gradient(), strict=True)]
    assert sum(off) / len(off) < 6
    assert not image.getexif()
    assert not {"exif", "xmp", "parameters", "dreamforge"} & image.info.keys()


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_a_lower_quality_makes_a_smaller_file(format: str) -> None:
    sizes = [len(_encoded(format, quality=quality)) for quality in (1, 50, 100)]
    assert sizes == sorted(set(sizes))


def test_quality_is_nothing_to_a_png() -> None:
    assert _encoded("png", quality=1) == _encoded("png", quality=100)


@pytest.mark.parametrize(("quality", "factors"), [(89, (2, 2)), (90, (1, 1))])
def test_a_fine_jpeg_keeps_its_colours_sharp(quality: int, factors: tuple[int, int]) -> None:
    # The first component's sampling factors (ITU T.81, B.2.2).
    assert getattr(_opened(_encoded("jpeg", quality=quality)), "layer")[0][1:3] == factors  # noqa: B009 - not typed


def test_latin_1_goes_into_text_and_the_rest_into_international_text() -> None:
    kinds = {
        content.split(b"\0")[0]: (kind, content)
        for kind, content in _chunks(_encoded("png", "a café, 10 µm", "森の狐 🦊"))
    }
    assert kinds[b"parameters"] == (b"tEXt", b"parameters\0" + "a café, 10 µm".encode("latin-1"))
    # Keyword, uncompressed, method 0, no language, no translated keyword, UTF-8.
    assert kinds[b"dreamforge"] == (b"iTXt", b"dreamforge\0\0\0\0\0" + "森の狐 🦊".encode())


def test_texts_stand_before_the_pixels() -> None:
    kinds = [kind for kind, _ in _chunks(_encoded("png", "x", "狐"))]
    assert kinds == [b"IHDR", b"tEXt", b"iTXt", b"IDAT", b"IEND"]


def test_pixels_are_compressed_for_speed() -> None:
    (content,) = [content for kind, content in _chunks(_encoded("png")) if kind == b"IDAT"]
    # FLEVEL, the two highest bits of zlib's second byte: 0 is the fastest (RFC 1950, 2.2).
    assert content[1] >> 6 == 0


@pytest.mark.parametrize("format", FORMATS)
@given(text=st.text(CHARACTERS, min_size=1, max_size=60).map(lambda text: f"{text}\nSteps: 1"))
def test_every_format_gives_its_text_back(format: str, text: str) -> None:
    assert read_image(_encoded(format, text)).parameters == text


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("character", ["x", "&", "狐", "🦊", "\ud800", "\uffff"])
@pytest.mark.parametrize("count", [1, 10, 8192])
def test_no_text_costs_the_image(format: str, character: str, count: int) -> None:
    text = f"{character * count}\nNegative prompt: {character * count}\nSteps: 1, Seed: 2, Size: 3x4"
    read = read_image(_encoded(format, text, '{"schema": 1, "device": "%s"}' % (character * 2 * count)))
    assert (read.format, read.width, read.height) == (format, 64, 48)
    assert read.parameters is not None
    assert read.parameters.endswith("\nSteps: 1, Seed: 2, Size: 3x4")
    assert read.manifest is not None
    if character != "\ud800":
        assert read.manifest.device == character * 2 * count, "the manifest is never shortened"
        is_cut = format == "jpeg" and len(text.encode("utf-16-be")) // 2 > MOST_COMMENT
        assert (read.parameters == text) is not is_cut


def test_fields_that_fill_a_jpegs_segment_are_left_to_the_manifest() -> None:
    read = read_image(_encoded("jpeg", "a fox\nNegative prompt: \n" + "x" * 40_000, '{"schema": 1, "device": "here"}'))
    assert read.parameters is None
    assert read.manifest is not None


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [0, 11, 13])
def test_pixels_of_another_size_are_refused(size: int, format: str) -> None:
    with pytest.raises(ValueError, match="data"):
        encode(bytes(size), width=2, height=2, format=format)


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="gif"):
        encode(bytes(12), width=2, height=2, format="gif")
