"""The messages between a supervisor and its runner, and their bytes.

A frame is a header and, for pixels, a payload::

    2 bytes  magic "DF"
    1 byte   protocol version
    1 byte   zero
    4 bytes  header length, big endian
    4 bytes  payload length, big endian
    header   UTF-8 JSON: {"type": "...", ...fields}
    payload  raw bytes (only `item_drawn`: RGB, 8 bits a channel, row by row)

One item goes like this: the supervisor sends `BeginItem` (the credit), the runner answers with `Progress` frames and
one `ItemDrawn`. After `EndOfItems` the runner sends `StepDone`; after `Acknowledge` it leaves. At any time the
supervisor may send `Stop`: the runner answers with `StepFailed` and the code `cancelled`, at the latest when it would
send progress next; while it decodes an image, once it has sent that.
"""

import json
import math
import re
import struct
from dataclasses import asdict, dataclass, field, fields
from types import UnionType
from typing import Any, ClassVar, get_origin

from dreamforge.jobs.progress import Stage

PROTOCOL_VERSION = 1
MAGIC = b"DF"
PREFIX = struct.Struct("!2sBxII")
MAX_HEADER = 1024 * 1024
MAX_PAYLOAD = 256 * 1024 * 1024
_DEEPEST = 16
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class FrameError(Exception):
    """The other side sent something that is no frame of this protocol."""


# Supervisor to runner.


@dataclass(frozen=True)
class PrepareStep:
    """What to load and what to draw.

    ``device`` is a torch device, `cuda` or `cpu`; ``params`` the job's, resolved; ``savings`` what saves GPU memory,
    see `dreamforge.jobs.memory_ladder`.
    """

    type: ClassVar[str] = "prepare_step"
    step: str
    model_kind: str
    model_path: str
    device: str
    params: dict[str, Any]
    savings: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class BeginItem:
    """The credit for one item."""

    type: ClassVar[str] = "begin_item"
    item_index: int
    seed: int


@dataclass(frozen=True)
class EndOfItems:
    """No more credits will come."""

    type: ClassVar[str] = "end_of_items"


@dataclass(frozen=True)
class Stop:
    """Draw no further: the image under way is not wanted any more."""

    type: ClassVar[str] = "stop"


@dataclass(frozen=True)
class Acknowledge:
    """The supervisor has everything: the runner may leave."""

    type: ClassVar[str] = "acknowledge"


# Runner to supervisor.


@dataclass(frozen=True)
class Ready:
    """The runner is up. ``versions`` maps package to version, `device_name` says what it computes on."""

    type: ClassVar[str] = "ready"
    pid: int
    versions: dict[str, str]
    device_name: str


@dataclass(frozen=True)
class ModelLoaded:
    """The model is in memory; ``seconds`` it took."""

    type: ClassVar[str] = "model_loaded"
    seconds: float


@dataclass(frozen=True)
class Progress:
    """``stage_progress`` in 0..1 of one stage of one item."""

    type: ClassVar[str] = "progress"
    item_index: int
    stage: str
    stage_progress: float


@dataclass(frozen=True)
class ItemDrawn:
    """One finished image: ``width * height * 3`` bytes of RGB. ``timings`` are seconds by stage."""

    type: ClassVar[str] = "item_drawn"
    item_index: int
    seed: int
    width: int
    height: int
    timings: dict[str, float]
    pixels: bytes = field(repr=False)


@dataclass(frozen=True)
class Log:
    """A line for the job's log. ``level`` is debug, info, warning or error."""

    type: ClassVar[str] = "log"
    level: str
    message: str


@dataclass(frozen=True)
class StepDone:
    """Every item is drawn. ``peak_memory`` is torch's peak of allocated device bytes, None on the CPU."""

    type: ClassVar[str] = "step_done"
    peak_memory: int | None


@dataclass(frozen=True)
class StepFailed:
    """The runner gives up, with a failure code of ``dreamforge.errors``."""

    type: ClassVar[str] = "step_failed"
    code: str
    message: str
    details: dict[str, Any]
    suggestions: list[str]
    peak_memory: int | None


Message = (
    PrepareStep
    | BeginItem
    | EndOfItems
    | Stop
    | Acknowledge
    | Ready
    | ModelLoaded
    | Progress
    | ItemDrawn
    | Log
    | StepDone
    | StepFailed
)

_TYPES: dict[str, type[Message]] = {
    kind.type: kind
    for kind in (
        PrepareStep,
        BeginItem,
        EndOfItems,
        Stop,
        Acknowledge,
        Ready,
        ModelLoaded,
        Progress,
        ItemDrawn,
        Log,
        StepDone,
        StepFailed,
    )
}


def encode(message: Message) -> bytes:
    """The bytes of one frame. Raises ``FrameError`` when it is over the limits."""
    content = asdict(message)
    payload: bytes = content.pop("pixels", b"")
    header = json.dumps({"type": message.type, **content}, separators=(",", ":")).encode()
    _check_lengths(len(header), len(payload))
    return PREFIX.pack(MAGIC, PROTOCOL_VERSION, len(header), len(payload)) + header + payload


def parse_prefix(prefix: bytes) -> tuple[int, int]:
    """Header and payload length from the first ``PREFIX.size`` bytes. Raises ``FrameError``."""
    magic, version, header_length, payload_length = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise FrameError(f"not a frame: it begins with {prefix[:2]!r}")
    if version != PROTOCOL_VERSION:
        raise FrameError(f"protocol version {version}, expected {PROTOCOL_VERSION}")
    _check_lengths(header_length, payload_length)
    return header_length, payload_length


def decode(header: bytes, payload: bytes) -> Message:
    """The message of one frame. Raises ``FrameError`` when it does not fit its type."""
    try:
        content = _storable(json.loads(header, parse_constant=_refuse_constant))
        kind = _TYPES[content.pop("type")]
        if kind is ItemDrawn:
            content["pixels"] = payload
        elif payload:
            raise FrameError(f"a payload of {len(payload)} bytes on {kind.type}")
        if content.keys() != {spec.name for spec in fields(kind)}:
            raise FrameError(f"wrong fields on {kind.type}")
        _check_types(kind, content)
        message = kind(**content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FrameError(f"unreadable frame: {type(error).__name__}") from error
    match message:
        case ItemDrawn():
            _check_pixels(message)
        case Progress() if message.stage not in set(Stage):
            raise FrameError("progress of no stage")
        case _:
            pass
    return message


def _check_types(kind: type[Message], content: dict[str, Any]) -> None:
    for spec in fields(kind):
        origin: Any = get_origin(spec.type)
        # `int | None` is understood by isinstance() as it is, `dict[str, Any]` only as `dict`.
        wanted: Any = spec.type if origin in (None, UnionType) else origin
        value = content[spec.name]
        # To Python a bool is an int; no message has one.
        if isinstance(value, bool) or not isinstance(value, (int, float) if wanted is float else wanted):
            raise FrameError(f"{spec.name} of {kind.type} is a {type(value).__name__}")


def _refuse_constant(name: str) -> None:
    # Python's JSON knows NaN and Infinity; Postgres' does not.
    raise ValueError(name)


def _storable(value: Any, *, depth: int = 0) -> Any:
    """The value as Postgres can keep it and clients can read it: no NUL, no lone surrogate, no number past every float,
    no nesting without end. Names of files and words of libraries come through here.
    """
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    match value:
        case str():
            return _UNSTORABLE.sub("\ufffd", value)
        case float() if not math.isfinite(value):
            raise ValueError("a number is too large")
        case dict():
            return {_storable(name): _storable(inner, depth=depth + 1) for name, inner in value.items()}
        case list():
            return [_storable(inner, depth=depth + 1) for inner in value]
        case _:
            return value


def _check_pixels(message: ItemDrawn) -> None:
    size = message.width * message.height * 3
    if min(message.width, message.height) < 1 or len(message.pixels) != size:
        raise FrameError(f"{len(message.pixels)} bytes of pixels for {message.width}x{message.height}")


def _check_lengths(header: int, payload: int) -> None:
    if header > MAX_HEADER or payload > MAX_PAYLOAD:
        raise FrameError(f"frame too large: header {header}, payload {payload} bytes")
