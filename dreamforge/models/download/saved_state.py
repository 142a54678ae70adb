"""What is written down beside a file that is not whole yet, so that the next process goes on from there."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

_MOST_BYTES = 1024 * 1024


@dataclass(frozen=True)
class SavedState:
    """``done``: which bytes are there, each from its begin to before its end, sorted and apart."""

    size: int | None
    etag: str | None
    last_modified: str | None
    done: tuple[tuple[int, int], ...]


_ADAPTER = TypeAdapter(SavedState)


def load(path: Path) -> SavedState | None:
    """What is written there; None when it is nothing, or makes no sense."""
    try:
        with path.open("rb") as file:
            state = _ADAPTER.validate_json(file.read(_MOST_BYTES))
    except (OSError, ValidationError):
        return None
    edges = [edge for span in state.done for edge in span]
    is_sound = edges == sorted(edges) and min(edges, default=0) >= 0
    return state if is_sound and (state.size is None or max(edges, default=0) <= state.size) else None


def save(state: SavedState, path: Path) -> None:
    """Write it in one step: what it speaks of must be on the disk before."""
    fresh = path.with_name(f"{path.name}.new")
    try:
        fresh.write_bytes(_ADAPTER.dump_json(state))
        fresh.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
