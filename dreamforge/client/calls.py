"""Every call of the API as a value: what to send, and how to read the answer. No I/O."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote
from uuid import UUID

from pydantic import BaseModel, ValidationError

from dreamforge.api.schemas import ArtifactList, Job, JobList, LogLine, Model, ModelList, Progress, Readiness
from dreamforge.client.errors import ApiError, ClientError, UnexpectedAnswer

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Schema = TypeVar("Schema", bound=BaseModel)
JobId = UUID | str
PAGE = 200


@dataclass(frozen=True)
class Call(Generic[T_co]):
    """One request, and what its answer means. ``answers`` are error statuses that are an answer all the same."""

    method: Literal["GET", "POST"]
    path: str
    parse: Callable[[bytes], T_co]
    params: tuple[tuple[str, str], ...] = ()
    json: dict[str, Any] | None = None
    answers: frozenset[int] = frozenset()

    @property
    def is_idempotent(self) -> bool:
        """True when it may be sent twice."""
        return self.method == "GET"


@dataclass(frozen=True)
class JobQuery:
    """Which jobs to list. The times, with a zone, are exclusive; ``model`` is an id, a name, or name@version."""

    status: Sequence[str] = ()
    type: str | None = None
    model: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None

    def params(self) -> tuple[tuple[str, str], ...]:
        """As the route takes it."""
        given = {
            "type": self.type,
            "model_id": self.model,
            "created_after": self.created_after.isoformat() if self.created_after else None,
            "created_before": self.created_before.isoformat() if self.created_before else None,
        }
        statuses = tuple(("status", status) for status in self.status)
        return statuses + tuple((name, value) for name, value in given.items() if value is not None)


@dataclass(frozen=True)
class LogQuery:
    """Which events to read: behind the ``seq`` ``after``; of some levels or codes, or about one image; else all."""

    after: int = 0
    levels: Sequence[str] = ()
    codes: Sequence[str] = ()
    item_index: int | None = None

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


def submit_job(body: dict[str, Any]) -> Call[Job]:
    """Create a job."""
    return Call("POST", "/v1/jobs", _as(Job), json=body)


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
    return Call("POST", f"/v1/jobs/{_segment(job_id)}/cancel", _as(Job))


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


def get_readiness() -> Call[Readiness]:
    """What the service says of its dependencies; also when one that it needs is away."""
    return Call("GET", "/readyz", _as(Readiness), answers=frozenset({503}))


def read_answer(call: Call[T], url: str, status: int, content: bytes) -> T | ClientError:
    """The call's value, or the error that the answer stands for."""
    if status < 300 or status in call.answers:
        try:
            return call.parse(content)
        except ValidationError:
            pass  # an envelope, or another program's answer
    return error_of(url, status, content)


class _Error(BaseModel):
    code: str
    message: str
    details: dict[str, Any] = {}
    request_id: str | None = None


class _Envelope(BaseModel):
    error: _Error


def error_of(url: str, status: int, content: bytes) -> ClientError:
    """The error of an answer."""
    try:
        error = _Envelope.model_validate_json(content).error
    except ValidationError:
        return UnexpectedAnswer(url, status=status)
    return ApiError(
        status=status, code=error.code, message=error.message, details=error.details, request_id=error.request_id
    )


def _as(schema: type[Schema]) -> Callable[[bytes], Schema]:
    return schema.model_validate_json


def _lines(content: bytes) -> list[LogLine]:
    return [LogLine.model_validate_json(line) for line in content.splitlines() if line]


def _page(size: int, cursor: str | None) -> tuple[tuple[str, str], ...]:
    return (("limit", str(size)), *((("cursor", cursor),) if cursor else ()))


def _segment(job_id: JobId) -> str:
    # An id from a person may hold anything; it stays one segment of the path.
    return quote(str(job_id), safe="")
