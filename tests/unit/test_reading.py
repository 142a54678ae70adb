"""What an image file says, whoever wrote it, and files that are none."""

import io
import struct
import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.Image import Exif
from PIL.PngImagePlugin import PngInfo

from dreamforge.images.encode import encode
from dreamforge.images.exif import exif_with
from dreamforge.images.manifest import Manifest
from dreamforge.images.parameters_text import parameters_text
from dreamforge.images.reading import MOST_BYTES, ReadMetadata, read_image
from dreamforge.jobs.image_format import IMAGE_FORMATS
from tests.unit.manifests import FOX, MANIFESTS

FORMATS = sorted(IMAGE_FORMATS)


def _file(format: str, manifest: Manifest = FOX) -> bytes:
    return encode(
        bytes(range(12)),
        width=2,
        height=2,
        format=format,
        parameters=parameters_text(manifest),
        manifest=manifest.as_text(),
    )


def _saved(format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2)).save(stream, format, **options)
    return stream.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack("!I", len(content)) + kind + content + struct.pack("!I", zlib.crc32(kind + content))


def _bomb(width: int, height: int) -> bytes:
    header = struct.pack("!IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


@pytest.mark.parametrize("format", FORMATS)
@given(made=MANIFESTS)
def test_a_file_of_every_format_gives_back_both_texts(format: str, made: Manifest) -> None:
    read = read_image(_file(format, made))
    assert read == ReadMetadata(format, 2, 2, parameters=parameters_text(made), manifest=made)


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_without_texts_says_so(format: str) -> None:
    bare = encode(bytes(12), width=2, height=2, format=format)
    assert read_image(bare) == ReadMetadata(format, 2, 2, parameters=None, manifest=None)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_comment_that_another_program_left_is_read_in_every_format(format: str) -> None:
    read = read_image(_saved(format, exif=exif_with("a fox\nSteps: 3")))
    assert (read.parameters, read.manifest) == ("a fox\nSteps: 3", None)


def test_a_pngs_own_text_comes_before_its_comment() -> None:
    texts = PngInfo()
    texts.add_text("parameters", "a hare")
    assert read_image(_saved("PNG", pnginfo=texts, exif=exif_with("a fox"))).parameters == "a hare"


def test_texts_behind_the_pixels_are_found() -> None:
    plain = encode(bytes(3), width=1, height=1, format="png")
    end = plain.rindex(b"IEND") - 4
    assert read_image(plain[:end] + _chunk(b"tEXt", b"parameters\0a fox") + plain[end:]).parameters == "a fox"


def test_a_manifest_that_is_none_and_a_broken_comment_leave_the_image() -> None:
    assert read_image(encode(bytes(3), width=1, height=1, format="png", manifest="[1]")).manifest is None
    broken = Exif()
    broken.get_ifd(0x8769)[0x9286] = b"UNICODE\0\xd8"
    assert read_image(_saved("JPEG", exif=broken.tobytes()[:-9])).parameters is None


@pytest.mark.parametrize("size", [(8193, 8193), (10_000, 9_000), (13_000, 13_000), (60_000, 60_000)])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", decode)
    with pytest.raises(ValueError, match="has more than 64 megapixels"):
        read_image(_bomb(*size))


@pytest.mark.parametrize(
    "data",
    [b"", b"hello, world\n", _saved("GIF"), _saved("BMP"), *(_file(format)[:-30] for format in FORMATS)],
    ids=["empty", "text", "gif", "bmp", *(f"cut {format}" for format in FORMATS)],
)
def test_what_is_no_whole_image_of_ours_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="is no PNG, JPEG or WebP that can be read"):
        read_image(data)


def test_a_file_without_end_is_refused_unread() -> None:
    with pytest.raises(ValueError, match="larger than 256 MiB"):
        read_image(bytes(MOST_BYTES + 1))


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(at=st.integers(0, 10_000), patch=st.binary(min_size=1, max_size=6), cut=st.booleans())
def test_a_damaged_file_is_read_or_refused(format: str, at: int, patch: bytes, cut: bool) -> None:
    data = _file(format)
    at %= len(data)
    damaged = data[:at] if cut else data[:at] + patch + data[at + len(patch) :]
    try:
        read = read_image(damaged)
    except ValueError:
        return
    assert isinstance(read, ReadMetadata)
