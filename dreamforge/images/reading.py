"""What an image file says about how it was made."""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

from PIL import Image

from dreamforge.images.exif import user_comment_of
from dreamforge.images.manifest import Manifest, read_manifest
from dreamforge.images.xmp import manifest_in

MOST_PIXELS = 64 * 1024 * 1024
MOST_BYTES = 256 * 1024 * 1024
"""Of a file: more than that many pixels take when nothing makes them smaller."""
_MOST_TEXT = 4 * 1024 * 1024
_FORMATS = {"PNG": "png", "JPEG": "jpeg", "MPO": "jpeg", "WEBP": "webp"}
_TOO_MANY_PIXELS = "has more than 64 megapixels"
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
)
"""What Pillow raises for files that are broken in one place or another."""


@dataclass(frozen=True)
class ReadMetadata:
    """An image file's format and size, its `parameters` text and our manifest, None where there is none."""

    format: str
    width: int
    height: int
    parameters: str | None
    manifest: Manifest | None


def read_image(data: bytes) -> ReadMetadata:
    """Read a PNG, JPEG or WebP whole.

    Raises ``ValueError`` for anything else, for one that is damaged, and for what is over 256 MiB or 64 megapixels:
    `is no PNG, JPEG or WebP that can be read`.
    """
    if len(data) > MOST_BYTES:
        raise ValueError("is larger than 256 MiB")
    with warnings.catch_warnings():
        # Pillow warns of images that our own limit refuses, and of what it passes over.
        warnings.simplefilter("ignore")
        try:
            return _read(data)
        except Image.DecompressionBombError as error:
            raise ValueError(_TOO_MANY_PIXELS) from error
        except _TooManyPixels as error:
            raise ValueError(_TOO_MANY_PIXELS) from error
        except _DAMAGE as error:
            raise ValueError("is no PNG, JPEG or WebP that can be read") from error


class _TooManyPixels(Exception):
    """More than are decoded."""


def _read(data: bytes) -> ReadMetadata:
    with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP"]) as image:
        if image.width * image.height > MOST_PIXELS:
            raise _TooManyPixels
        # A PNG's chunks may stand behind the pixels; reading those is what finds them.
        image.load()
        parameters, own = _texts(image)
        return ReadMetadata(
            format=_FORMATS[str(image.format)],
            width=image.width,
            height=image.height,
            parameters=parameters if parameters and len(parameters) <= _MOST_TEXT else None,
            manifest=read_manifest(own) if own and len(own) <= _MOST_TEXT else None,
        )


def _texts(image: Image.Image) -> tuple[str | None, str | None]:
    """The `parameters` text and the `dreamforge` one: of text chunks, or else of EXIF and XMP."""
    parameters: object = image.info.get("parameters")
    own: object = image.info.get("dreamforge")
    xmp: object = image.info.get("xmp")
    segments: list[tuple[str, bytes]] = getattr(image, "applist", [])
    in_xmp = manifest_in(xmp, (content for _, content in segments)) if isinstance(xmp, bytes) else None
    return (
        parameters if isinstance(parameters, str) else _user_comment(image),
        own if isinstance(own, str) else in_xmp,
    )


def _user_comment(image: Image.Image) -> str | None:
    try:
        return user_comment_of(image.getexif())
    except _DAMAGE:
        # Of an image that is whole otherwise.
        return None
