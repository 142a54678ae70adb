"""The shapes of `/v1`, as clients send and see them."""

import uuid
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class Strict(BaseModel):
    """A body: unknown fields and silent conversions are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class JobOptions(Strict):
    """How to run the job; times in seconds."""

    oom_policy: Literal["fail"] = "fail"
    start_timeout: float | None = Field(default=None, gt=0, le=86_400, allow_inf_nan=False)
    step_timeout: float | None = Field(default=None, gt=0, le=86_400, allow_inf_nan=False)
    preview_every: None = Field(default=None, description="No previews are made so far.")


class CreateJob(Strict):
    """A job to run. `params` are checked against the model's `parameters_schema`, which also gives the defaults."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"type": "generate", "count": 2, "params": {"prompt": "a lighthouse at dawn", "seed": 7}}]
        }
    )

    type: Literal["generate"]
    model_id: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = Field(
        default=None, description="An id, a name, or name@version. Null: the default model."
    )
    count: int = Field(default=1, ge=1, le=100, description="Images to make.")
    priority: Literal["low", "normal", "high"] = "normal"
    params: dict[str, Any] = Field(description="What to draw: see the model's `parameters_schema`.")
    options: JobOptions = Field(default_factory=JobOptions)
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict, max_length=16, description="The caller's own; returned as sent."
    )


class JobError(BaseModel):
    """Why a step or a job failed. One that was cancelled has none."""

    code: str
    message: str
    details: dict[str, Any]
    suggestions: list[str]


class JobProgress(BaseModel):
    """How far the job is: `fraction` in 0..1; `eta_seconds` and `queue_position` are null where nothing is known."""

    fraction: float
    items_done: int
    items_total: int
    stage: str | None
    queue_position: int | None = None
    eta_seconds: float | None = None


class JobStep(BaseModel):
    """One step of a job."""

    id: uuid.UUID
    name: str
    status: str
    attempt: int
    started_at: datetime | None
    finished_at: datetime | None
    error: JobError | None


class JobLinks(BaseModel):
    """Where to go on from here."""

    self: str
    artifacts: str
    logs: str
    progress: str
    stream: str
    cancel: str


class Job(BaseModel):
    """A job as it is now."""

    id: uuid.UUID
    type: str
    status: str
    model_id: uuid.UUID | None
    count: int
    priority: str
    params: dict[str, Any]
    options: dict[str, Any]
    metadata: dict[str, str]
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    progress: JobProgress
    steps: list[JobStep]
    error: JobError | None
    links: JobLinks


class JobList(BaseModel):
    """A page of jobs, newest first; `next_cursor` is null on the last."""

    items: list[Job]
    next_cursor: str | None


class Artifact(BaseModel):
    """A finished image. `url` reads it until `url_expires_at`; `checksum` is `sha256:` and the hex digest."""

    id: uuid.UUID
    job_id: uuid.UUID
    step_id: uuid.UUID
    item_index: int
    format: str
    width: int
    height: int
    seed: int
    size_bytes: int
    checksum: str
    created_at: datetime
    expires_at: datetime | None
    url: str
    url_expires_at: datetime
    metadata: dict[str, Any]


class ArtifactList(BaseModel):
    """A page of artifacts; `next_cursor` is null on the last."""

    items: list[Artifact]
    next_cursor: str | None


class ModelNode(BaseModel):
    """A node that holds the model."""

    node: str
    verified_at: datetime


class Model(BaseModel):
    """A model the service knows. `parameters_schema` is JSON Schema 2020-12."""

    id: uuid.UUID
    name: str
    kind: str
    version: str
    installed: bool
    enabled: bool
    default: bool
    checkpoint_hash: str | None
    source_uri: str
    capabilities: list[str]
    parameters_schema: dict[str, Any]
    size_bytes: int
    nodes: list[ModelNode]
    created_at: datetime
    updated_at: datetime
    metadata: dict[str, Any]


class ModelList(BaseModel):
    """Every model."""

    items: list[Model]
    next_cursor: str | None = None


class LogLine(BaseModel):
    """One event of a job; `seq` counts from 1 without gaps."""

    seq: int
    ts: datetime
    code: str
    job_id: uuid.UUID
    step_id: uuid.UUID | None
    attempt: int | None
    level: str
    payload: dict[str, Any]


class EventProgress(BaseModel):
    """How far the job was after an event; none of it ever goes down."""

    fraction: float
    items_done: int
    items_total: int


class StreamEvent(LogLine):
    """One event of a job's stream: its line of the log, and the job's progress after it."""

    progress: EventProgress


class ItemProgress(BaseModel):
    """How far one image is. `seed` is null until it is drawn, `artifact_id` until the image is stored."""

    item_index: int
    step: str
    status: str
    fraction: float
    stage: str | None
    seed: int | None
    artifact_id: uuid.UUID | None


class Progress(BaseModel):
    """How far a job and each of its images is: `fraction` in 0..1, never going down; `last_seq` is its last event's."""

    job_id: uuid.UUID
    status: str
    fraction: float
    items_done: int
    items_total: int
    stage: str | None
    eta_seconds: float | None
    last_seq: int
    items: list[ItemProgress]


class Check(BaseModel):
    """One dependency: whether it answers, whether the service needs it, how long it took."""

    ok: bool
    required: bool
    ms: int
    message: str | None = None


class Readiness(BaseModel):
    """`ok`, `degraded` when something that can be done without is away, `unavailable` when the service cannot work."""

    status: Literal["ok", "degraded", "unavailable"]
    checks: dict[str, Check]


class Liveness(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"
