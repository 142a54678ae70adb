"""Events as they go over the wire: server-sent events and lines of the log, each written once for all its readers.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from dreamforge.api.errors import HttpError
from dreamforge.api.schemas import EventProgress, StreamEvent
from dreamforge.api.views import log_line
from dreamforge.store.events import EventRecord

MEDIA_TYPE = "text/event-stream"
RETRY = b"retry: 2000\n\n"
"""Milliseconds that a browser waits before it connects again."""
KEEP_ALIVE = b": keep-alive\n\n"
_PIECE = 64 * 1024
_SEQ = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True)
class Frame:
    """One event, serialised at most once in each form."""

    event: EventRecord

    @property
    def seq(self) -> int:
        """The event's place."""
        return self.event.seq

    @cached_property
    def sse(self) -> bytes:
        """The event as one of a stream: `id`, `event`, `data`."""
        progress = self.event.progress
        data = StreamEvent(
            **dict(log_line(self.event)),
            progress=EventProgress(
                fraction=round(progress["fraction"], 4),
                items_done=progress["items_done"],
                items_total=progress["items_total"],
            ),
        ).model_dump_json()
        # JSON holds no line breaks, and a code is one of ours: every field is one line.
        return f"id: {self.event.seq}\nevent: {self.event.code}\ndata: {data}\n\n".encode()

    @cached_property
    def line(self) -> bytes:
        """The event as a line of the log."""
        return log_line(self.event).model_dump_json().encode() + b"\n"


def pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The parts in as few pieces as may be, each of 64 KiB at most or of one part."""
    held: list[bytes] = []
    size = 0
    for part in parts:
        if held and size + len(part) > _PIECE:
            yield b"".join(held)
            held, size = [], 0
        held.append(part)
        size += len(part)
    if held:
        yield b"".join(held)


def place_of(last_event_ids: Sequence[str]) -> int | None:
    """The place that the `Last-Event-ID` headers of a request name; None when there is none. Raises 400."""
    if not last_event_ids:
        return None
    if len(last_event_ids) > 1 or not _SEQ.fullmatch(last_event_ids[0]):
        raise HttpError(400, "Last-Event-ID is not the id of one of this stream's events.")
    return int(last_event_ids[0])
