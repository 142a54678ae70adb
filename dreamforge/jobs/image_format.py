"""The formats of image files: one table for the form, the worker, the API and the command line."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageFormat:
    """One row: our name, what a person reads, the ending of a file's name, and the media type."""

    name: str
    title: str
    extension: str
    content_type: str


PNG = "png"
"""What an image is that says nothing else."""
IMAGE_FORMATS: dict[str, ImageFormat] = {
    row.name: row
    for row in (
        ImageFormat(PNG, "PNG", "png", "image/png"),
        ImageFormat("jpeg", "JPEG", "jpg", "image/jpeg"),
        ImageFormat("webp", "WebP", "webp", "image/webp"),
    )
}
DEFAULT_QUALITY = 90
"""Of JPEG and WebP, 1 to 100."""


def extension_of(format: str) -> str:
    """The ending of a file's name; a format that is not known here, as a newer service has it, is its own."""
    known = IMAGE_FORMATS.get(format)
    return known.extension if known else format
