"""Pixels to a file's bytes, with what the file says about itself."""

import io

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dreamforge.images.exif import MOST_COMMENT, exif_with
from dreamforge.images.parameters_text import shortened
from dreamforge.images.xmp import jpeg_segments, packet
from dreamforge.jobs.image_format import DEFAULT_QUALITY

_COMPRESS_LEVEL = 1
"""Fastest: the next image should not wait for this one, and noise does not shrink anyway."""
_SHARP_COLOURS = 90
"""The quality from which a JPEG keeps colours at full resolution: it costs little beside what that quality costs."""
_MOST_EXIF = 65_533


def encode(
    pixels: bytes,
    *,
    width: int,
    height: int,
    format: str,
    quality: int = DEFAULT_QUALITY,
    parameters: str = "",
    manifest: str = "",
) -> bytes:
    """A file of ``width * height * 3`` bytes of RGB. ``quality``, 1 to 100, is for JPEG and WebP.

    ``parameters`` and ``manifest`` are what it says of itself; an empty one is left out. In a PNG they are text chunks;
    in the others the one is EXIF's `UserComment`, the other XMP. A JPEG has room for 32,700 UTF-16 units of
    ``parameters``: there prompts that are longer end with `…`, before their LoRAs; the manifest has them whole.

    Raises ``ValueError`` when the pixels are fewer or more than that, and for a format that there is not.
    """
    if len(pixels) != width * height * 3:
        raise ValueError(f"{len(pixels)} bytes of pixel data for {width}x{height}")
    image = Image.frombytes("RGB", (width, height), pixels)
    stream = io.BytesIO()
    match format:
        case "png":
            image.save(stream, "PNG", pnginfo=_chunks(parameters, manifest), compress_level=_COMPRESS_LEVEL)
        case "jpeg":
            subsampling = "4:4:4" if quality >= _SHARP_COLOURS else "4:2:0"
            exif = _exif(shortened(parameters, MOST_COMMENT))
            extra = jpeg_segments(manifest) if manifest else b""
            image.save(
                stream,
                "JPEG",
                quality=quality,
                subsampling=subsampling,
                # A line of fields that leaves no room for the prompts: the manifest has it too.
                exif=exif if len(exif) <= _MOST_EXIF else b"",
                extra=extra,
            )
        case "webp":
            image.save(
                stream, "WEBP", quality=quality, exif=_exif(parameters), xmp=packet(manifest) if manifest else b""
            )
        case _:
            raise ValueError(f"no format {format!r}")
    return stream.getvalue()


def _chunks(parameters: str, manifest: str) -> PngInfo:
    """Text goes into tEXt where it is Latin-1, which every reader knows, and else into iTXt as UTF-8 (PNG, third
    edition, 11.3.3).
    """
    chunks = PngInfo()
    for keyword, text in (("parameters", parameters), ("dreamforge", manifest)):
        value = text.encode("utf-8", "replace").decode()
        if value and _is_latin1(value):
            chunks.add_text(keyword, value)
        elif value:
            chunks.add_itxt(keyword, value)
    return chunks


def _exif(parameters: str) -> bytes:
    return exif_with(parameters) if parameters else b""


def _is_latin1(value: str) -> bool:
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True
