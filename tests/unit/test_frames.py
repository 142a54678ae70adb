"""Frames between supervisor and runner: what is sent comes back, and nothing else is taken for a frame."""

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dreamforge.jobs import frames
from dreamforge.jobs.channel import ChannelClosed, FrameChannel
from dreamforge.jobs.frames import (
    MAGIC,
    MAX_HEADER,
    MAX_PAYLOAD,
    PREFIX,
    PROTOCOL_VERSION,
    Acknowledge,
    BeginItems,
    EndOfItems,
    FrameError,
    ItemDrawn,
    Log,
    Message,
    ModelLoaded,
    PrepareStep,
    Progress,
    Ready,
    StepDone,
    StepFailed,
)
from dreamforge.jobs.progress import Stage

# Without NUL, which Postgres cannot keep.
_texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"))
_numbers = st.floats(allow_nan=False, allow_infinity=False)
_values = st.none() | st.booleans() | st.integers() | _numbers | _texts
_objects = st.dictionaries(_texts, _values, max_size=4)


@st.composite
def _drawn(draw: st.DrawFn) -> ItemDrawn:
    width, height = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    size = width * height * 3
    return ItemDrawn(
        item_index=draw(st.integers()),
        seed=draw(st.integers()),
        width=width,
        height=height,
        timings=draw(st.dictionaries(_texts, _numbers, max_size=3)),
        pixels=draw(st.binary(min_size=size, max_size=size)),
    )


@st.composite
def _credits(draw: st.DrawFn) -> BeginItems:
    items = draw(st.lists(st.tuples(st.integers(), st.integers()), min_size=1, max_size=4))
    return BeginItems(item_indexes=[index for index, _ in items], seeds=[seed for _, seed in items])


MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        PrepareStep,
        step=_texts,
        model_kind=_texts,
        model_path=_texts,
        device=_texts,
        params=_objects,
        savings=st.lists(_texts, max_size=2),
        vae_dtype=_texts,
        is_channels_last=st.booleans(),
        config_path=st.none() | _texts,
        vae_path=st.none() | _texts,
        loras=st.lists(_objects, max_size=2),
    ),
    _credits(),
    st.just(EndOfItems()),
    st.just(Acknowledge()),
    st.builds(Ready, pid=st.integers(), versions=st.dictionaries(_texts, _texts), device_name=_texts),
    st.builds(ModelLoaded, seconds=_numbers, dtype=_texts),
    st.builds(Progress, item_index=st.integers(), stage=st.sampled_from(Stage), stage_progress=_numbers),
    _drawn(),
    st.builds(Log, level=_texts, message=_texts),
    st.builds(StepDone, peak_memory=st.none() | st.integers()),
    st.builds(
        StepFailed,
        code=_texts,
        message=_texts,
        details=_objects,
        suggestions=st.lists(_texts, max_size=3),
        peak_memory=st.none() | st.integers(),
    ),
)


def _decoded(frame: bytes) -> Message:
    header_length, payload_length = frames.parse_prefix(frame[: PREFIX.size])
    header_end = PREFIX.size + header_length
    assert len(frame) == header_end + payload_length
    return frames.decode(frame[PREFIX.size : header_end], frame[header_end:])


def _header(**content: object) -> bytes:
    return json.dumps(content).encode()


@pytest.fixture
def ends() -> Iterator[tuple[FrameChannel, socket.socket]]:
    ours, theirs = socket.socketpair()
    with FrameChannel(ours) as channel, theirs:
        yield channel, theirs


@given(MESSAGES)
def test_every_message_comes_back_as_it_was(message: Message) -> None:
    assert _decoded(frames.encode(message)) == message


@given(st.binary(min_size=PREFIX.size, max_size=PREFIX.size))
def test_a_prefix_is_ours_or_refused(prefix: bytes) -> None:
    try:
        header, payload = frames.parse_prefix(prefix)
    except FrameError:
        return
    assert prefix.startswith(MAGIC)
    assert header <= MAX_HEADER
    assert payload <= MAX_PAYLOAD


@given(st.binary(), st.binary(max_size=8))
def test_garbage_is_no_frame(header: bytes, payload: bytes) -> None:
    with pytest.raises(FrameError):
        frames.decode(header, payload)


_json_values = st.recursive(_values, lambda inner: st.lists(inner, max_size=3), max_leaves=4)


@given(MESSAGES.filter(lambda message: not isinstance(message, ItemDrawn)), st.data())
def test_a_field_of_another_type_is_refused_or_harmless(message: Message, data: st.DataObject) -> None:
    content: dict[str, Any] = json.loads(frames.encode(message)[PREFIX.size :])
    assume(len(content) > 1)
    name = data.draw(st.sampled_from(sorted(content.keys() - {"type"})))
    content[name] = data.draw(_json_values)
    try:
        decoded = frames.decode(json.dumps(content).encode(), b"")
    except FrameError:
        return
    assert type(getattr(decoded, name)) is type(content[name])


@pytest.mark.parametrize(
    "content",
    [
        {"type": "begin_items", "item_indexes": [1]},
        {"type": "begin_items", "item_indexes": [1], "seeds": [2], "more": 3},
        {"type": "begin_items", "item_indexes": 1, "seeds": 2},
        {"type": "begin_items", "item_indexes": ["1"], "seeds": [2]},
        {"type": "begin_items", "item_indexes": [1.5], "seeds": [2]},
        {"type": "begin_items", "item_indexes": [True], "seeds": [2]},
        {"type": "begin_items", "item_indexes": [1, 2], "seeds": [3]},
        {"type": "step_done", "peak_memory": "much"},
        {"type": "step_failed", "code": 1, "message": "", "details": {}, "suggestions": [], "peak_memory": None},
        {"type": "no_such_frame"},
        {"type": ["begin_items"]},
        {"item_indexes": [1], "seeds": [2]},
        {},
    ],
    ids=str,
)
def test_wrong_fields_are_refused(content: dict[str, Any]) -> None:
    with pytest.raises(FrameError):
        frames.decode(_header(**content), b"")


@pytest.mark.parametrize("header", [b"[1]", b"null", b"[" * 100_000, b'{"type": "log"', b"\xff", b"1" * 5000])
def test_a_header_that_is_no_object_is_refused(header: bytes) -> None:
    with pytest.raises(FrameError):
        frames.decode(header, b"")


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_text_that_cannot_be_kept_is_made_so(text: str) -> None:
    failed = {
        "code": "internal",
        "message": text,
        "details": {text: [text]},
        "suggestions": [text],
        "peak_memory": None,
    }
    message = frames.decode(_header(type="step_failed", **failed), b"")
    assert isinstance(message, StepFailed)
    assert message.message == "a\ufffdb"
    assert message.details == {"a\ufffdb": ["a\ufffdb"]}


def test_progress_of_no_stage_is_refused() -> None:
    header = _header(type="progress", item_index=0, stage="dreaming", stage_progress=0.5)
    with pytest.raises(FrameError):
        frames.decode(header, b"")


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_numbers_that_json_does_not_know_are_refused(number: bytes) -> None:
    with pytest.raises(FrameError):
        frames.decode(b'{"type": "model_loaded", "dtype": "", "seconds": ' + number + b"}", b"")


@pytest.mark.parametrize(
    ("width", "height", "payload"),
    [
        (2, 2, b"x" * 11),
        (2, 2, b""),
        (None, 2, b""),
        ("ab", 2**40, b""),
        (-1, -1, b"xxx"),
        (0, 0, b""),
        (True, True, b"xxx"),
    ],
)
def test_pixels_that_do_not_fit_the_size_are_refused(width: object, height: object, payload: bytes) -> None:
    header = _header(type="item_drawn", item_index=0, seed=0, width=width, height=height, timings={})
    with pytest.raises(FrameError):
        frames.decode(header, payload)


def test_a_payload_belongs_to_pixels_only() -> None:
    with pytest.raises(FrameError):
        frames.decode(_header(type="end_of_items"), b"x")


@pytest.mark.parametrize(("header", "payload"), [(MAX_HEADER + 1, 0), (2, MAX_PAYLOAD + 1), (2**32 - 1, 2**32 - 1)])
def test_a_frame_that_would_be_too_large_is_refused_by_its_prefix(header: int, payload: int) -> None:
    with pytest.raises(FrameError):
        frames.parse_prefix(PREFIX.pack(MAGIC, PROTOCOL_VERSION, header, payload))


def test_another_protocol_version_is_refused() -> None:
    with pytest.raises(FrameError, match=f"version {PROTOCOL_VERSION + 1}"):
        frames.parse_prefix(PREFIX.pack(MAGIC, PROTOCOL_VERSION + 1, 2, 0))


def test_a_message_over_the_limit_is_not_sent() -> None:
    with pytest.raises(FrameError):
        frames.encode(Log(level="info", message="x" * MAX_HEADER))


@given(st.lists(MESSAGES, min_size=1, max_size=5), st.integers(1, 64))
def test_messages_in_pieces_of_any_size_arrive_whole_and_in_order(messages: list[Message], piece: int) -> None:
    stream = b"".join(map(frames.encode, messages))
    ours, theirs = socket.socketpair()
    with FrameChannel(ours) as channel, theirs:
        received: list[Message] = []
        for start in range(0, len(stream), piece):
            theirs.sendall(stream[start : start + piece])
            received += _all_that_came(channel)
    assert received == messages


def _all_that_came(channel: FrameChannel) -> list[Message]:
    came: list[Message] = []
    while True:
        try:
            came.append(channel.receive(timeout=0.0001))
        except TimeoutError:
            return came


def test_a_large_image_passes_while_both_sides_work(ends: tuple[FrameChannel, socket.socket]) -> None:
    channel, theirs = ends
    image = ItemDrawn(item_index=0, seed=1, width=1024, height=1024, timings={}, pixels=bytes(1024 * 1024 * 3))
    sender = threading.Thread(target=FrameChannel(theirs).send, args=(image,))
    sender.start()
    assert channel.receive(timeout=30) == image
    sender.join()


def test_what_nobody_reads_is_not_sent_for_ever() -> None:
    ours, theirs = socket.socketpair()
    with FrameChannel(ours, send_timeout=0.3) as channel, theirs:
        line = Log(level="info", message="x" * 100_000)
        with pytest.raises(ChannelClosed):
            all(channel.send(line) is None for _ in range(100))
        # What has gone is still whole, up to where it stops.
        assert isinstance(FrameChannel(theirs).receive(timeout=5), Log)


def test_details_nested_without_end_are_no_frame() -> None:
    details: dict[str, Any] = {}
    for _ in range(20):
        details = {"in": details}
    header = json.dumps(
        {
            "type": "step_failed",
            "code": "oom",
            "message": "",
            "details": details,
            "suggestions": [],
            "peak_memory": None,
        }
    )
    with pytest.raises(FrameError):
        frames.decode(header.encode(), b"")


def test_many_threads_send_and_no_frame_is_torn(ends: tuple[FrameChannel, socket.socket]) -> None:
    channel, theirs = ends
    other = FrameChannel(theirs)
    texts = [letter * 100_000 for letter in "abcd"]
    senders = [
        threading.Thread(target=lambda text=text: [other.send(Log(level="info", message=text)) for _ in range(5)])
        for text in texts
    ]
    for sender in senders:
        sender.start()
    received = [channel.receive(timeout=30) for _ in range(20)]
    for sender in senders:
        sender.join()
    assert sorted(message.message for message in received if isinstance(message, Log)) == sorted(texts * 5)


def test_a_timeout_loses_nothing_of_what_has_come(ends: tuple[FrameChannel, socket.socket]) -> None:
    channel, theirs = ends
    frame = frames.encode(BeginItems(item_indexes=[3], seeds=[4]))
    for part in (frame[:5], frame[5 : PREFIX.size + 2], frame[PREFIX.size + 2 :]):
        with pytest.raises(TimeoutError):
            channel.receive(timeout=0.001)
        theirs.sendall(part)
    assert channel.receive(timeout=5) == BeginItems(item_indexes=[3], seeds=[4])


def test_the_end_of_the_stream_closes_the_channel_even_within_a_frame(ends: tuple[FrameChannel, socket.socket]) -> None:
    channel, theirs = ends
    theirs.sendall(frames.encode(EndOfItems())[:-1])
    theirs.close()
    with pytest.raises(ChannelClosed):
        channel.receive(timeout=5)


def test_sending_to_nobody_says_so(ends: tuple[FrameChannel, socket.socket]) -> None:
    channel, theirs = ends
    theirs.close()
    with pytest.raises(ChannelClosed):
        channel.send(EndOfItems())


def test_garbage_on_the_wire_is_a_frame_error(ends: tuple[FrameChannel, socket.socket]) -> None:
    channel, theirs = ends
    theirs.sendall(b"Traceback (most recent call last):")
    with pytest.raises(FrameError):
        channel.receive(timeout=5)


@pytest.mark.parametrize(
    ("indexes", "seeds"), [([], []), ([1], []), ([1], [2, 3]), ([True], [1]), (["1"], [1]), ([1.0], [1])]
)
def test_a_credit_is_for_items_with_a_seed_each(indexes: list[Any], seeds: list[Any]) -> None:
    frame = frames.encode(BeginItems(item_indexes=indexes, seeds=seeds))
    with pytest.raises(FrameError, match="a credit for no items"):
        frames.decode(frame[PREFIX.size :], b"")
