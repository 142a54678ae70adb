"""XMP packets: one property, in a packet or in a JPEG's segments."""

import hashlib
import json
import struct
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamforge.images.xmp import jpeg_segments, manifest_in, packet

_MARK = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
JSON = st.text(max_size=60).map(lambda text: json.dumps({"a": text}, ensure_ascii=False))


def _segments(jpeg: bytes) -> list[bytes]:
    """The contents of APP1 segments that stand one behind the other (ITU T.81, B.1.1.4)."""
    found: list[bytes] = []
    while jpeg:
        marker, length = struct.unpack_from("!HH", jpeg)
        assert marker == 0xFFE1
        found.append(jpeg[4 : 2 + length])
        assert len(found[-1]) == length - 2
        jpeg = jpeg[2 + length :]
    return found


def _standard(segments: list[bytes]) -> bytes:
    (standard,) = [segment for segment in segments if segment.startswith(_MARK)]
    return standard.removeprefix(_MARK)


@given(JSON)
def test_a_packet_is_xml_and_gives_its_text_back(manifest: str) -> None:
    written = packet(manifest)
    # Whatever reads XML reads it: ElementTree knows nothing of XMP.
    tree = ElementTree.fromstring(written)  # noqa: S314 - of our own making
    assert json.loads("".join(tree.itertext())) == json.loads(manifest)
    assert json.loads(manifest_in(written) or "") == json.loads(manifest)


@pytest.mark.parametrize("size", [0, 10, 64_000, 65_000, 66_000, 200_000])
def test_a_jpegs_segments_hold_texts_of_any_length(size: int) -> None:
    manifest = json.dumps({"a": "x" * size})
    segments = _segments(jpeg_segments(manifest))
    assert max(map(len, segments)) <= 65_533
    assert manifest_in(_standard(segments), segments) == manifest
    assert manifest_in(_standard(segments), reversed(segments)) == manifest, "they may come in any order"


def test_what_is_too_long_is_an_extended_packet_by_the_rules_of_xmp() -> None:
    """XMP specification, part 3, 1.1.3.1: mark, 32 digits of the MD5, whole length, place, portion."""
    standard, *portions = _segments(jpeg_segments(json.dumps({"a": "x" * 150_000})))
    assert len(portions) == 3
    whole = bytearray(packet(json.dumps({"a": "x" * 150_000})))
    digest = hashlib.md5(whole, usedforsecurity=False).hexdigest().upper().encode()
    assert b'xmpNote:HasExtendedXMP="' + digest in standard
    for portion in portions:
        assert portion.startswith(_EXTENSION + digest)
        length, place = struct.unpack_from("!II", portion, len(_EXTENSION) + 32)
        content = portion[len(_EXTENSION) + 40 :]
        assert length == len(whole)
        assert whole[place : place + len(content)] == content


def test_an_extended_packet_that_is_not_whole_is_none() -> None:
    segments = _segments(jpeg_segments(json.dumps({"a": "x" * 150_000})))
    assert manifest_in(_standard(segments), segments[:-1]) is None
    assert manifest_in(_standard(segments)) is None


def test_a_property_that_a_program_has_made_an_attribute_is_found() -> None:
    other = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:a="urn:dreamforge:manifest#" a:manifest="{&quot;a&quot;: 1}"/></rdf:RDF></x:xmpmeta>'
    )
    assert manifest_in(other) == '{"a": 1}'


@pytest.mark.parametrize(
    "other",
    [
        b"",
        b"no xml",
        b"<a/>",
        b'<a xmlns:d="urn:another#"><d:manifest>{}</d:manifest></a>',
        b'<!DOCTYPE a [<!ENTITY b "{}">]><a xmlns:d="urn:dreamforge:manifest#"><d:manifest>&b;</d:manifest></a>',
        b'<?xml version="1.0" encoding="none"?><a/>',
    ],
)
def test_where_there_is_none_of_ours_none_is_found(other: bytes) -> None:
    assert manifest_in(other) is None


@given(st.binary(max_size=60), st.integers(0, 600))
def test_any_packet_is_read_somehow(noise: bytes, at: int) -> None:
    written = packet('{"a": 1}')
    assert isinstance(manifest_in(written[:at] + noise + written[at + len(noise) :]), str | None)
