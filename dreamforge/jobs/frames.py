"""The messages between a supervisor and its runner, and their bytes.

A frame is a header and, for pixels, a payload::

    2 bytes  magic "DF"
    1 byte   protocol version
    1 byte   zero
    4 bytes  header length, big endian
    4 bytes  payload length, big endian
    header   UTF-8 JSON: {"type": "...", ...fields}
    payload  raw bytes (only `item_drawn`: RGB, 8 bits a channel, row by row)

One batch goes like this: the supervisor sends `BeginItems` (the credit), the runner answers with `Progress` frames and
an `ItemDrawn` for each item, in their order. After `EndOfItems` the runner sends `StepDone`; after `Acknowledge` it
leaves. At any time the supervisor may send `Stop`: the runner answers with `StepFailed` and the code `cancelled`, at
the latest when it would send progress next; while it decodes images, once it has sent those.
"""

import json
import struct
from dataclasses import asdict, dataclass, field, fields
from types import UnionType
from typing import Any, ClassVar, get_origin

from dreamforge.jobs.progress import Stage
from dreamforge.jobs.storable import storable

PROTOCOL_VERSION = 2
MAGIC = b"DF"
PREFIX = struct.Struct("!2sBxII")
MAX_HEADER = 1024 * 1024
MAX_PAYLOAD = 256 * 1024 * 1024


class FrameError(Exception):
    """The other side sent something that is no frame of this protocol."""


# Supervisor to runner.


@dataclass(frozen=True)
class PrepareStep:
    """What to load and what to draw.

    ``model_path`` is a folder in diffusers' layout or a single file; ``config_path`` the folder of its components'
    configurations, None for those of SDXL 1.0; ``vae_path`` a VAE in place of the model's own, file or folder.
    ``device`` is a torch device, `cuda` or `cpu`; ``params`` the job's, resolved; ``savings`` what saves GPU memory,
    see `dreamforge.jobs.memory_ladder`; ``vae_dtype`` the VAE's element type on a GPU.
    """

    type: ClassVar[str] = "prepare_step"
    step: str
    model_kind: str
    model_path: str
    device: str
    params: dict[str, Any]
    savings: list[str] = field(default_factory=list[str])
    vae_dtype: str = "float32"
    is_channels_last: bool = False
    config_path: str | None = None
    vae_path: str | None = None
    loras: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


@dataclass(frozen=True)
class BeginItems:
    """The credit for items that are denoised together; ``seeds`` are in the same order."""

    type: ClassVar[str] = "begin_items"
    item_indexes: list[int]
    seeds: list[int]


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
    """The model is in memory; ``seconds`` it took. ``dtype`` is what the UNet computes in."""

    type: ClassVar[str] = "model_loaded"
    seconds: float
    dtype: str


@dataclass(frozen=True)
class Progress:
    """``stage_progress`` in 0..1 of one stage of one item."""

    type: ClassVar[str] = "progress"
    item_index: int
    stage: str
    stage_progress: float


@dataclass(frozen=True)
class ItemDrawn:
    """One finished image: ``width * height * 3`` bytes of RGB.

    ``timings`` are seconds by stage, of a batch its share.
    """

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
    | BeginItems
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
        BeginItems,
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
        content = storable(json.loads(header, parse_constant=_refuse_constant))
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
        case BeginItems():
            _check_items(message)
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
        # To Python a bool is an int.
        is_of_type = isinstance(value, (int, float) if wanted is float else wanted)
        if not is_of_type or isinstance(value, bool) != (wanted is bool):
            raise FrameError(f"{spec.name} of {kind.type} is a {type(value).__name__}")


def _refuse_constant(name: str) -> None:
    # Python's JSON knows NaN and Infinity; Postgres' does not.
    raise ValueError(name)


def _check_pixels(message: ItemDrawn) -> None:
    size = message.width * message.height * 3
    if min(message.width, message.height) < 1 or len(message.pixels) != size:
        raise FrameError(f"{len(message.pixels)} bytes of pixels for {message.width}x{message.height}")


def _check_items(message: BeginItems) -> None:
    numbers: list[Any] = [*message.item_indexes, *message.seeds]
    is_paired = 0 < len(message.item_indexes) == len(message.seeds)
    if not is_paired or not all(type(number) is int for number in numbers):
        raise FrameError("a credit for no items")


def _check_lengths(header: int, payload: int) -> None:
    if header > MAX_HEADER or payload > MAX_PAYLOAD:
        raise FrameError(f"frame too large: header {header}, payload {payload} bytes")
