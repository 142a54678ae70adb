"""Every call of the API as a value: what to send, and how to read the answer. No I/O."""

import math
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote
from uuid import UUID

from pydantic import BaseModel, ValidationError

from dreamforge.api.schemas import (
    Artifact,
    ArtifactList,
    Job,
    JobList,
    LogLine,
    Model,
    ModelList,
    Progress,
    Readiness,
)
from dreamforge.client.errors import ApiError, ClientError, UnexpectedAnswer
from dreamforge.jobs.events import EventCode, Level

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Schema = TypeVar("Schema", bound=BaseModel)
JobId = UUID | str
PAGE = 200
IDEMPOTENCY_KEY = "Idempotency-Key"
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_LONGEST_RETRY_AFTER = 30.0
_MOST_AFTER, _MOST_ITEM_INDEX = 2**62, 99


@dataclass(frozen=True)
class Call(Generic[T_co]):
    """One request, and what its answer means.

    ``answers`` are error statuses that are an answer all the same. ``patience``: seconds for which the service may hold
    the answer, besides those that every answer has. ``most``: seconds that are left for it, if fewer than those.
    ``repeats``: a POST that does the same when it comes again.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    parse: Callable[[bytes], T_co]
    params: tuple[tuple[str, str], ...] = ()
    json: dict[str, Any] | None = None
    answers: frozenset[int] = frozenset()
    headers: tuple[tuple[str, str], ...] = ()
    patience: float = 0.0
    most: float = math.inf
    repeats: bool = False

    @property
    def is_idempotent(self) -> bool:
        """True when it may be sent twice."""
        return self.method != "POST" or self.repeats or any(name == IDEMPOTENCY_KEY for name, _ in self.headers)

    @property
    def writes(self) -> bool:
        """True when it changes something."""
        return self.method != "GET"


@dataclass(frozen=True)
class JobQuery:
    """Which jobs to list. The times, with a zone, are exclusive; ``model`` is an id, a name, or name@version."""

    status: Sequence[str] = ()
    type: str | None = None
    model: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    error_code: Sequence[str] = ()

    def params(self) -> tuple[tuple[str, str], ...]:
        """As the route takes it."""
        given = {
            "type": self.type,
            "model_id": self.model,
            "created_after": self.created_after.isoformat() if self.created_after else None,
            "created_before": self.created_before.isoformat() if self.created_before else None,
        }
        statuses = tuple(("status", status) for status in self.status)
        codes = tuple(("error_code", code) for code in self.error_code)
        return statuses + codes + tuple((name, value) for name, value in given.items() if value is not None)


def new_key() -> str:
    """An Idempotency-Key that nobody else has."""
    return secrets.token_urlsafe(24)


def submit_job(body: dict[str, Any], *, key: str | None = None, wait: int | None = None) -> Call[Job]:
    """Create a job, or find the one that the key has made. ``wait``: seconds to hold the answer until it is over.

    Raises ``ValueError`` for a key that is no Idempotency-Key, and for a time that is not 0..60.
    """
    if key is not None and not _KEY.fullmatch(key):
        raise ValueError("an idempotency key is 1 to 255 visible ASCII characters")
    if wait is not None and not 0 <= wait <= 60:
        raise ValueError("wait is 0 to 60 seconds")
    headers = ((IDEMPOTENCY_KEY, key), ("Prefer", None if wait is None else f"wait={wait}"))
    return Call(
        "POST",
        "/v1/jobs",
        _as(Job),
        json=body,
        headers=tuple((name, value) for name, value in headers if value is not None),
        patience=wait or 0,
    )


def download_model(body: dict[str, Any], *, key: str) -> Call[Job]:
    """Create a job that downloads a model, or find the one that the key has made. Raises as ``submit_job`` does."""
    return replace(submit_job(body, key=key), path="/v1/admin/models")


@dataclass(frozen=True)
class ModelWish:
    """A model to download. What is None is left to the service, and so is judging the rest."""

    source: str
    name: str | None = None
    version: str | None = None
    kind: str | None = None
    default: bool | None = None
    local_only: bool = False
    priority: str = "normal"
    metadata: Mapping[str, str] | None = None

    def body(self) -> dict[str, Any]:
        """As the route takes it."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class LogQuery:
    """Which events to read: behind the ``seq`` ``after``; of some levels or codes, or about one image; else all.

    Raises ``ValueError`` for what the service would refuse: a stream is filtered here.
    """

    after: int = 0
    levels: Sequence[str] = ()
    codes: Sequence[str] = ()
    item_index: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.after <= _MOST_AFTER:
            raise ValueError("after is the seq of an event, or 0")
        if unknown := [*(set(self.levels) - set(Level)), *(set(self.codes) - set(EventCode))]:
            raise ValueError(f"there is no level or code {unknown[0]!r}")
        if self.item_index is not None and not 0 <= self.item_index <= _MOST_ITEM_INDEX:
            raise ValueError("item_index is 0 to 99")

    def params(self) -> tuple[tuple[str, str], ...]:
        """As the route takes it."""
        item = () if self.item_index is None else (("item_index", str(self.item_index)),)
        return (
            ("after", str(self.after)),
            *(("level", level) for level in self.levels),
            *(("code", code) for code in self.codes),
            *item,
        )

    def fits(self, line: LogLine) -> bool:
        """True when the service would send the line."""
        return (
            line.seq > self.after
            and (not self.levels or line.level in self.levels)
            and (not self.codes or line.code in self.codes)
            and (self.item_index is None or line.payload.get("item_index") == self.item_index)
        )


def job_body(
    prompt: str,
    *,
    count: int,
    model: str | None,
    priority: str,
    metadata: Mapping[str, str],
    options: Mapping[str, Any],
    params: Mapping[str, Any],
) -> dict[str, Any]:
    """The body of a generate job. What is None is left to the service, and so is judging the rest."""
    return {
        "type": "generate",
        "count": count,
        "priority": priority,
        "params": {"prompt": prompt, **{name: value for name, value in params.items() if value is not None}},
        **({"model_id": model} if model is not None else {}),
        **({"metadata": dict(metadata)} if metadata else {}),
        **({"options": dict(options)} if options else {}),
    }


def get_job(job_id: JobId) -> Call[Job]:
    """One job."""
    return Call("GET", f"/v1/jobs/{_segment(job_id)}", _as(Job))


def list_jobs(query: JobQuery, *, page_size: int, cursor: str | None) -> Call[JobList]:
    """A page of jobs."""
    return Call("GET", "/v1/jobs", _as(JobList), params=(*query.params(), *_page(page_size, cursor)))


def cancel_job(job_id: JobId) -> Call[Job]:
    """Ask for a job's end."""
    return Call("POST", f"/v1/jobs/{_segment(job_id)}/cancel", _as(Job), repeats=True)


def retry_job(job_id: JobId) -> Call[Job]:
    """Queue a job again."""
    return Call("POST", f"/v1/jobs/{_segment(job_id)}/retry", _as(Job))


def delete_job(job_id: JobId) -> Call[None]:
    """Delete a job."""
    return Call("DELETE", f"/v1/jobs/{_segment(job_id)}", lambda _: None)


def get_artifact(artifact_id: UUID | str) -> Call[Artifact]:
    """One image."""
    return Call("GET", f"/v1/artifacts/{_segment(artifact_id)}", _as(Artifact))


def list_artifacts(job_id: JobId, *, cursor: str | None) -> Call[ArtifactList]:
    """A page of a job's images."""
    return Call("GET", f"/v1/jobs/{_segment(job_id)}/artifacts", _as(ArtifactList), params=_page(PAGE, cursor))


def get_logs(job_id: JobId, query: LogQuery) -> Call[list[LogLine]]:
    """A job's events so far."""
    return Call("GET", f"/v1/jobs/{_segment(job_id)}/logs", _lines, params=query.params())


def get_progress(job_id: JobId) -> Call[Progress]:
    """How far a job and each of its images is."""
    return Call("GET", f"/v1/jobs/{_segment(job_id)}/progress", _as(Progress))


def stream_path(job_id: JobId) -> str:
    """Where a job's events are streamed."""
    return f"/v1/jobs/{_segment(job_id)}/progress/stream"


def list_models() -> Call[list[Model]]:
    """Every model."""
    return Call("GET", "/v1/models", lambda content: ModelList.model_validate_json(content).items)


def get_model(reference: str) -> Call[Model]:
    """The model of an id, a name, or name@version."""
    return Call("GET", f"/v1/models/{_segment(reference)}", _as(Model))


def get_readiness() -> Call[Readiness]:
    """What the service says of its dependencies; also when one that it needs is away."""
    return Call("GET", "/readyz", _as(Readiness), answers=frozenset({503}))


def read_answer(
    call: Call[T], url: str, status: int, content: bytes, *, retry_after: str | None = None
) -> T | ClientError:
    """The call's value, or the error that the answer stands for. ``retry_after`` is the header, as it came."""
    if status < 300 or status in call.answers:
        try:
            return call.parse(content)
        except ValidationError:
            pass  # an envelope, or another program's answer
    return error_of(url, status, content, retry_after=retry_after)


class _Error(BaseModel):
    code: str
    message: str
    details: dict[str, Any] = {}
    request_id: str | None = None


class _Envelope(BaseModel):
    error: _Error


def error_of(url: str, status: int, content: bytes, *, retry_after: str | None = None) -> ClientError:
    """The error of an answer."""
    try:
        error = _Envelope.model_validate_json(content).error
    except ValidationError:
        return UnexpectedAnswer(url, status=status)
    return ApiError(
        status=status,
        code=error.code,
        message=error.message,
        details=error.details,
        request_id=error.request_id,
        retry_after=_seconds(retry_after),
    )


def _seconds(retry_after: str | None) -> float | None:
    # A date is possible too (RFC 9110, 10.2.3); the service sends none.
    if retry_after is None or not re.fullmatch("[0-9]{1,6}", retry_after):
        return None
    return min(float(retry_after), _LONGEST_RETRY_AFTER)


def _as(schema: type[Schema]) -> Callable[[bytes], Schema]:
    return schema.model_validate_json


def _lines(content: bytes) -> list[LogLine]:
    return [LogLine.model_validate_json(line) for line in content.splitlines() if line]


def _page(size: int, cursor: str | None) -> tuple[tuple[str, str], ...]:
    return (("limit", str(size)), *((("cursor", cursor),) if cursor else ()))


def _segment(job_id: JobId) -> str:
    # An id from a person may hold anything; it stays one segment of the path.
    return quote(str(job_id), safe="")
