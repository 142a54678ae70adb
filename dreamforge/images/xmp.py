"""XMP, where JPEG and WebP hold the `dreamforge` object: a packet with one property, whose text is JSON.

A JPEG's segment holds 64 KB. What is longer goes into an extended packet in several segments, and the packet itself
names that one by its MD5 digest (XMP specification, part 3, 1.1.3.1).
"""

import hashlib
import re
import struct
from collections.abc import Iterable
from xml.parsers import expat

_SPACE = "urn:dreamforge:manifest#"
_NOTE = "http://ns.adobe.com/xmp/note/"
_EXTENDED = f"{_NOTE} HasExtendedXMP"
_STANDARD_MARK = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENSION_MARK = b"http://ns.adobe.com/xmp/extension/\0"
_PLACE = struct.Struct("!II")
_DIGEST_LENGTH = 32
_SEGMENT = 65_533
_PORTION = 65_000
MOST_BYTES = 4 * 1024 * 1024
"""Of a packet that is read."""
# JSON has escapes for what XML 1.0 has no character for (2.2); it leaves none of the controls below a blank.
_NO_XML = re.compile("[\ud800-\udfff\ufffe\uffff]")


def packet(manifest: str) -> bytes:
    """An XMP packet with the JSON text in it."""
    text = _NO_XML.sub(lambda found: f"\\u{ord(found[0]):04x}", manifest)
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(character, entity)
    return _packet(f'xmlns:dreamforge="{_SPACE}"', f"<dreamforge:manifest>{text}</dreamforge:manifest>")


def jpeg_segments(manifest: str) -> bytes:
    """The same as a JPEG's APP1 segments, as many as it takes."""
    whole = packet(manifest)
    if len(_STANDARD_MARK) + len(whole) <= _SEGMENT:
        return _segment(_STANDARD_MARK + whole)
    digest = _digest(whole)
    naming = _packet(f'xmlns:xmpNote="{_NOTE}" xmpNote:HasExtendedXMP="{digest}"', "")
    head = _EXTENSION_MARK + digest.encode()
    portions = (head + _PLACE.pack(len(whole), at) + whole[at : at + _PORTION] for at in range(0, len(whole), _PORTION))
    return b"".join(map(_segment, (_STANDARD_MARK + naming, *portions)))


def manifest_in(found: bytes, segments: Iterable[bytes] = ()) -> str | None:
    """The JSON text of a packet; None where there is none. ``segments`` are a JPEG's, for one that goes on there."""
    values = _values(found)
    digest = values.get(_EXTENDED)
    if digest is not None:
        values = _values(_extended(digest.encode("ascii", "replace"), segments))
    return values.get(f"{_SPACE} manifest")


def _packet(attributes: str, content: str) -> bytes:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" {attributes}>{content}</rdf:Description>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def _segment(content: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack("!H", len(content) + 2) + content


def _digest(extended: bytes) -> str:
    return hashlib.md5(extended, usedforsecurity=False).hexdigest().upper()


def _extended(digest: bytes, segments: Iterable[bytes]) -> bytes:
    """The extended packet, put together by the places that its portions name; empty when it is not whole."""
    head = _EXTENSION_MARK + digest
    portions: dict[int, bytes] = {}
    for segment in segments:
        if len(digest) == _DIGEST_LENGTH and segment.startswith(head) and len(segment) >= len(head) + _PLACE.size:
            _, place = _PLACE.unpack_from(segment, len(head))
            portions[place] = segment[len(head) + _PLACE.size :]
    whole = b"".join(portions[place] for place in sorted(portions))
    return whole if _digest(whole).encode() == digest else b""


def _values(found: bytes) -> dict[str, str]:
    """The texts of a packet's properties by `namespace name`, whether they are elements or attributes."""
    values: dict[str, str] = {}
    open_names: list[str] = []

    def begin(name: str, attributes: dict[str, str]) -> None:
        open_names.append(name)
        values.update(attributes)
        values[name] = ""

    def text(content: str) -> None:
        values[open_names[-1]] += content

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text, parser.buffer_size = True, _PORTION
    parser.StartElementHandler = begin
    parser.EndElementHandler = lambda _: open_names.pop()
    parser.CharacterDataHandler = text
    parser.EntityDeclHandler = _refuse
    try:
        parser.Parse(found[:MOST_BYTES].strip(b"\0 \r\n\t"), True)
    except (expat.ExpatError, ValueError, LookupError):
        return {}
    return values


def _refuse(*_: object) -> None:
    # XMP has no entities of its own, and those of others may grow without end.
    raise ValueError("an entity")
