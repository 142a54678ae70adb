"""Numbers, times and errors as a person reads them."""

import re
import unicodedata
from collections.abc import Callable
from datetime import datetime

from dreamforge.api.schemas import Job, JobError
from dreamforge.client.errors import ApiError, ChecksumMismatch, ClientError, UnexpectedAnswer, Unreachable
from dreamforge.jobs.job import JobType

_UNITS = (("day", 86_400), ("h", 3600), ("min", 60))
_SLUG_LENGTH = 40
_DESCRIBED_ERRORS = 3
_SIZES = ("B", "KB", "MB", "GB", "TB")


def age(moment: datetime, *, now: datetime) -> str:
    """How long ago something was: `just now`, `12 s ago`, `3 min ago`."""
    seconds = (now - moment).total_seconds()
    return "just now" if seconds < 5 else f"{duration(seconds)} ago"


def duration(seconds: float) -> str:
    """A time in its largest fitting unit: `0.4 s`, `12 s`, `3 min`, `2 h`, `5 days`."""
    for unit, size in _UNITS:
        if seconds >= size:
            number = round(seconds / size)
            return f"{number} {unit}s" if unit == "day" and number != 1 else f"{number} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def size(size_bytes: int) -> str:
    """Bytes in their largest fitting unit, of 1000: `812 B`, `1.4 MB`."""
    number = float(size_bytes)
    for unit in _SIZES:
        if number < 1000 or unit == _SIZES[-1]:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError(size_bytes)


def images(done: int, total: int) -> str:
    """How many images are there: `2 of 4 images`."""
    return f"{done} of {total} image{'' if total == 1 else 's'}"


def subject(job: Job) -> str:
    """What a job is about: its prompt, or where the model that it downloads comes from."""
    return str(job.params.get("prompt") or job.params.get("source") or "")


def is_download(job: Job) -> bool:
    """True for a job that makes no images."""
    return job.type == JobType.MODEL_DOWNLOAD


def advance(job: Job) -> str:
    """How far a job is: `2 of 4 images`, or `43%` of a download."""
    if is_download(job):
        return f"{job.progress.fraction:.0%}"
    return images(job.progress.items_done, job.progress.items_total)


def shortened(text: str, length: int) -> str:
    """A text on one line of at most ``length`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: max(0, length - 1)].rstrip() + "…"


def slug(prompt: str) -> str:
    """The prompt's beginning as part of a file name: `a-lighthouse-at-dawn`."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.findall(r"[a-z0-9]+", plain)
    name = ""
    for word in words:
        longer = f"{name}-{word}" if name else word[:_SLUG_LENGTH]
        if len(longer) > _SLUG_LENGTH:
            break
        name = longer
    return name or "image"


def sentence(error: ClientError) -> str:
    """What went wrong, and what to do about it."""
    match error:
        case Unreachable(is_store=True):
            return f"The object store does not answer at {error.url} ({error.reason})."
        case Unreachable():
            return f"No Dream Forge answers at {error.url} ({error.reason}). Start one here: dreamforge up"
        case ApiError():
            return " ".join(
                part for part in (f"{error.code}: {error.message}", _described(error), _advice(error)) if part
            )
        case UnexpectedAnswer():
            return f"{error} Is the address right? See --url and DREAMFORGE_URL."
        case ChecksumMismatch():
            return f"{error} Nothing was kept; try again."
        case _:
            return str(error)


def job_error(error: JobError) -> str:
    """A job's error object in one sentence, with what to try."""
    return " ".join([f"{error.code}: {error.message}", *(f"Try: {hint}." for hint in error.suggestions)])


def _described(error: ApiError) -> str:
    parts: list[dict[str, str]] = error.details.get("errors") or []
    shown = [_fault(part.get("path", ""), part.get("message", "")) for part in parts[:_DESCRIBED_ERRORS]]
    more = len(parts) - len(shown)
    return "; ".join(shown) + (f"; and {more} more." if more > 0 else "." if shown else "")


def _fault(path: str, message: str) -> str:
    """`params.width must be a multiple of 8`; `source: Write that source as hf:org/repo`, where it is a sentence."""
    between = ": " if path and message[:1].isupper() else " "
    return f"{path}{between}{message}".strip().removesuffix(".")


_MODELS = "See: dreamforge model list"
_SOON = "Try again in a few seconds."
_ADVICE: dict[str, str | Callable[[ApiError], str]] = {
    "not_found": "See: dreamforge jobs list",
    "unknown_model": _MODELS,
    "model_not_installed": _MODELS,
    "model_disabled": _MODELS,
    "model_incompatible": _MODELS,
    "service_unavailable": _SOON,
    "rate_limited": _SOON,
    "queue_full": "Try again when jobs have ended: dreamforge jobs list",
    "internal": lambda error: f"The service's log tells more: dreamforge logs api (request {error.request_id})",
}


def _advice(error: ApiError) -> str:
    advice = _ADVICE.get(error.code, "")
    return advice if isinstance(advice, str) else advice(error)
