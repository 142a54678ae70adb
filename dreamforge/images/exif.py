"""EXIF's `UserComment`, where JPEG and WebP hold the `parameters` text.

Eight bytes name the character code, the text follows (Exif 2.32, 4.6.6). AUTOMATIC1111 writes it by piexif's
``helper.UserComment`` with ``encoding="unicode"``: `UNICODE\\0` and UTF-16, big endian; Civitai reads nothing else.
"""

from PIL.Image import Exif

MOST_COMMENT = 32_700
"""UTF-16 units of a comment that fits into a JPEG's one segment of 64 KB, with what stands around it."""
_EXIF_FOLDER = 0x8769
_USER_COMMENT = 0x9286
_CODE_LENGTH = 8
_UNICODE = b"UNICODE\0"
_ENCODINGS = {b"ASCII\0\0\0": "utf-8", b"JIS\0\0\0\0\0": "iso2022_jp", bytes(_CODE_LENGTH): "utf-8"}
_SIGN = "Steps: "


def exif_with(comment: str) -> bytes:
    """An EXIF block, as Pillow saves it, with the comment and nothing else. A lone surrogate becomes a `?`."""
    exif = Exif()
    exif.get_ifd(_EXIF_FOLDER)[_USER_COMMENT] = _UNICODE + comment.encode("utf-16-be", "replace")
    return exif.tobytes()


def user_comment_of(exif: Exif) -> str | None:
    """The comment, whoever wrote it; None where there is none."""
    found: object = exif.get_ifd(_EXIF_FOLDER).get(_USER_COMMENT)
    if isinstance(found, str):
        return found or None
    return _decoded(found) or None if isinstance(found, bytes) else None


def _decoded(comment: bytes) -> str:
    code, content = comment[:_CODE_LENGTH], comment[_CODE_LENGTH:]
    if code == _UNICODE:
        return content.decode(_utf_16(content), "replace").strip("\0\ufeff")
    if code in _ENCODINGS:
        return content.decode(_ENCODINGS[code], "replace").strip("\0")
    return comment.decode("utf-8", "replace").strip("\0")


def _utf_16(content: bytes) -> str:
    """Which of the two it is: not all write big endian, and few say it."""
    for mark, encoding in ((b"\xfe\xff", "utf-16-be"), (b"\xff\xfe", "utf-16-le")):
        if content.startswith(mark):
            return encoding
    for encoding in ("utf-16-be", "utf-16-le"):
        if _SIGN in content.decode(encoding, "replace"):
            return encoding
    # Most texts have more of Latin's high bytes, which are zero, than of any other.
    return "utf-16-le" if content[1::2].count(0) > content[::2].count(0) else "utf-16-be"
