"""Pixels to a file's bytes."""

import io
from collections.abc import Mapping

from PIL import Image
from PIL.PngImagePlugin import PngInfo

_COMPRESS_LEVEL = 1
"""Fastest: the next image should not wait for this one, and noise does not shrink anyway."""


def encode_png(pixels: bytes, *, width: int, height: int, text: Mapping[str, str]) -> bytes:
    """A PNG of ``width * height * 3`` bytes of RGB, with text chunks.

    Text goes into tEXt where it is Latin-1, which every reader knows, and else into iTXt as UTF-8 (PNG, third edition,
    11.3.3). Raises ``ValueError`` when the pixels are fewer or more than that.
    """
    if len(pixels) != width * height * 3:
        raise ValueError(f"{len(pixels)} bytes of pixel data for {width}x{height}")
    chunks = PngInfo()
    for keyword, value in text.items():
        if _is_latin1(value):
            chunks.add_text(keyword, value)
        else:
            chunks.add_itxt(keyword, value)
    stream = io.BytesIO()
    image = Image.frombytes("RGB", (width, height), pixels)
    image.save(stream, "PNG", pnginfo=chunks, compress_level=_COMPRESS_LEVEL)
    return stream.getvalue()


def _is_latin1(value: str) -> bool:
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True
