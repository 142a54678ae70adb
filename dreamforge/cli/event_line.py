"""One event of a job as one line."""

from typing import Any

from rich.text import Text

from dreamforge.api.schemas import LogLine
from dreamforge.cli.wording import duration, shortened, size
from dreamforge.jobs.progress import DownloadStage

_STYLES = {"debug": "dim", "info": "", "warning": "yellow", "error": "red"}
_CODE_WIDTH = 20
_MOST_VALUE = 200


def event_line(event: LogLine) -> Text:
    """Time of day, code, and what the event says, coloured by its level."""
    moment = event.ts.astimezone().strftime("%H:%M:%S.%f")[:-3]
    line = Text(f"{moment}  ", style="dim")
    line.append(f"{event.code:<{_CODE_WIDTH}}  ", style=_STYLES.get(event.level, ""))
    line.append(said(event), style=_STYLES.get(event.level, ""))
    return line


def said(event: LogLine) -> str:
    """What the event says beside its code."""
    told = _of_a_model(event.payload)
    return _of_a_job(event.payload) if told is None else told


def _of_a_model(payload: dict[str, Any]) -> str | None:
    match payload:
        case {"stage": str(stage), "stage_progress": int() | float() as share} if stage in set(DownloadStage):
            return f"{stage} {share:.0%}"
        case {"item_index": int(), "seed": None, **rest}:
            return _joined("", rest.get("timings") or {}, unit=" s")
        case {"model": str(model), "bytes_done": int(done), **rest}:
            total = rest.get("bytes_total")
            return f"{model}: {size(done)}{f' of {size(total)}' if isinstance(total, int) else ''}"
        case {"name": str(name), "version": str(version), "model_id": str()}:
            return f"{name}@{version}"
        case _:
            return None


def _of_a_job(payload: dict[str, Any]) -> str:
    match payload:
        case {"item_index": int(index), "stage": str(stage), "stage_progress": int() | float() as share}:
            return f"image {index}: {stage.replace('_', ' ')} {share:.0%}"
        case {"item_index": int(index), "size_bytes": int(size_bytes)}:
            return f"image {index}: {size(size_bytes)}"
        case {"item_index": int(index), "seed": int(seed), **rest}:
            return _joined(f"image {index}: seed {seed}", rest.get("timings") or {}, unit=" s")
        case {"phase": str(phase), "available": False, **rest}:
            return f"{phase}: {rest.get('message') or 'not available'}"
        case {"phase": str(phase), "used_bytes": int(used), "total_bytes": int(total)}:
            return f"{phase}: {size(used)} of {size(total)}"
        case {"phase": str(phase), "used_bytes": int(used)}:
            return f"{phase}: {size(used)}"
        case {"error": {"code": str(code), "message": str(message)}, "seconds": int() | float() as seconds}:
            return f"{code}: {message} Again in {duration(seconds)}."
        case {"error": {"code": str(code), "message": str(message)}, **_rest}:
            return f"{code}: {message}"
        case {"message": str(message)}:
            return shortened(message, _MOST_VALUE)
        case _:
            return _joined("", payload)


def _joined(first: str, values: dict[str, Any], *, unit: str = "") -> str:
    parts = [f"{name.replace('_', ' ')} {shortened(str(value), _MOST_VALUE)}{unit}" for name, value in values.items()]
    return ", ".join([part for part in (first, *parts) if part])
