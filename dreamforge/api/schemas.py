"""The shapes of `/v1`, as clients send and see them."""

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from dreamforge.jobs.events import EventCode
from dreamforge.jobs.image_format import IMAGE_FORMATS
from dreamforge.jobs.job import ItemStatus, JobStatus, JobType, Priority, StepStatus

MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


def _one_of(description: str, words: Iterable[str]) -> Any:
    """A word that a client reads. Documented as a choice, read as any: a newer service may know more of them."""
    return Field(description=description, json_schema_extra={"enum": [str(word) for word in words]})


class Strict(BaseModel):
    """A body: unknown fields and silent conversions are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class JobOptions(Strict):
    """How to run the job; times in seconds."""

    oom_policy: Literal["fail", "degrade"] = Field(
        default="fail",
        description="What to do when the GPU has too little memory: fail, or try again with one way after the other "
        "to save some (VAE tiling, VAE slicing, model offload, sequential offload), each slower.",
    )
    start_timeout: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="Seconds a step may wait for a GPU. Null: for as long as all GPUs are busy; where there is none, "
        "the service's own limit.",
    )
    step_timeout: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="Seconds a step may run. Null: the service's own limit.",
    )
    preview_every: None = Field(default=None, description="No previews are made so far.")


def _made_here(type: object) -> object:
    if type == JobType.MODEL_DOWNLOAD:
        raise PydanticCustomError("job_type", "is made by POST /v1/admin/models")
    return type


class CreateJob(Strict):
    """A job to run. `params` are checked against the model's `parameters_schema`, which also gives the defaults."""

    type: Annotated[Literal["generate"], BeforeValidator(_made_here)] = Field(description="What to do.")
    model_id: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = Field(
        default=None,
        description="An id, name@version, or a name: then its newest version that can be used. "
        "Null: the default model.",
    )
    count: int = Field(default=1, ge=1, le=100, description="Images to make.")
    priority: Literal["low", "normal", "high"] = Field(default="normal", description="A higher one is run first.")
    params: dict[str, Any] = Field(description="What to draw: see the model's `parameters_schema`.")
    options: JobOptions = Field(default_factory=JobOptions, description="How to run it.")
    metadata: dict[MetadataKey, MetadataValue] = Field(
        default_factory=dict, max_length=16, description="The caller's own; returned as sent."
    )


class JobError(BaseModel):
    """Why a step or a job failed. One that was cancelled has none."""

    code: str = Field(description="Stable; what a program looks at.")
    message: str = Field(description="A sentence for a person.")
    details: dict[str, Any] = Field(description="What the code says more about.")
    suggestions: list[str] = Field(description="What may help.")


class JobProgress(BaseModel):
    """How far the job is: `fraction` in 0..1.

    `queue_position`, from 1, is told of the first thousand jobs that wait for a GPU, and of as many downloads.
    `eta_seconds` is told of a running job once images like its own were measured: the time of drawing what is left.
    """

    fraction: float = Field(description="0 to 1; never goes down.")
    items_done: int = Field(description="Images that are finished.")
    items_total: int = Field(description="Images that are asked for.")
    stage: str | None = Field(description="What the image that was begun last is at.")
    queue_position: int | None = Field(default=None, description="Its place in line, from 1.")
    eta_seconds: float | None = Field(default=None, description="Seconds until the end.")


class JobStep(BaseModel):
    """One step of a job."""

    id: uuid.UUID = Field(description="The step's id.")
    name: str = Field(description="What it does.")
    status: str = _one_of("Where it is in its life.", StepStatus)
    attempt: int = Field(description="Counts how often it was begun.")
    started_at: datetime | None = Field(description="When its last attempt began.")
    finished_at: datetime | None = Field(description="When it ended.")
    error: JobError | None = Field(description="Why it failed.")


class JobLinks(BaseModel):
    """Where to go on from here."""

    self: str = Field(description="The job.")
    artifacts: str = Field(description="Its images.")
    logs: str = Field(description="Its events.")
    progress: str = Field(description="How far it and each of its images is.")
    stream: str = Field(description="Its events as they happen.")
    cancel: str = Field(description="POST here to cancel it.")


class Job(BaseModel):
    """A job as it is now."""

    id: uuid.UUID = Field(description="The job's id.")
    type: str = _one_of("What it does.", JobType)
    status: str = _one_of("Where it is in its life. The last three are ends.", JobStatus)
    model_id: uuid.UUID | None = Field(
        description="The model it is drawn with; null when that was removed, and for a download."
    )
    count: int = Field(description="Images to make.")
    priority: str = _one_of("A higher one is run first.", Priority)
    params: dict[str, Any] = Field(description="What to draw, with every default filled in.")
    options: dict[str, Any] = Field(title="Resolved options", description="How to run it, with every default.")
    metadata: dict[str, str] = Field(description="The caller's own, as it was sent.")
    created_at: datetime = Field(description="When it was accepted.")
    updated_at: datetime = Field(description="When it last changed.")
    started_at: datetime | None = Field(description="When its first step began.")
    finished_at: datetime | None = Field(description="When it ended.")
    expires_at: datetime | None = Field(description="When it will be removed; null: never.")
    progress: JobProgress = Field(description="How far it is.")
    steps: list[JobStep] = Field(description="Its steps, in order.")
    error: JobError | None = Field(description="Why it failed.")
    links: JobLinks = Field(description="Where to go on from here.")


class JobList(BaseModel):
    """A page of jobs, newest first; `next_cursor` is null on the last."""

    items: list[Job] = Field(description="The page.")
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last.")


class Artifact(BaseModel):
    """A finished image. `url` reads it until `url_expires_at`; `checksum` is `sha256:` and the hex digest."""

    id: uuid.UUID = Field(description="The artifact's id.")
    job_id: uuid.UUID = Field(description="The job that made it.")
    step_id: uuid.UUID = Field(description="The step that made it.")
    item_index: int = Field(description="Which image of the job, from 0.")
    format: str = _one_of("What kind of file it is.", IMAGE_FORMATS)
    width: int = Field(description="Pixels.")
    height: int = Field(description="Pixels.")
    seed: int = Field(description="What it was drawn with.")
    size_bytes: int = Field(description="Bytes of the file.")
    checksum: str = Field(description="`sha256:` and the hex digest of the file.")
    created_at: datetime = Field(description="When it was finished.")
    expires_at: datetime | None = Field(description="When it will be removed; null: never.")
    url: str = Field(description="Presigned: reads the file without credentials.")
    url_expires_at: datetime = Field(description="Until then.")
    metadata: dict[str, Any] = Field(description="How it was made.")


class ArtifactList(BaseModel):
    """A page of artifacts; `next_cursor` is null on the last."""

    items: list[Artifact] = Field(description="The page.")
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last.")


class ModelNode(BaseModel):
    """A node that holds the model."""

    node: str = Field(description="The node's address, which several may share.")
    node_id: str | None = Field(description="Ray's id of the node when it last drew with the model.")
    verified_at: datetime = Field(
        description="When its files were last checked there: by their hashes where the node has fetched them, by their "
        "sizes where they were installed."
    )
    last_used_at: datetime = Field(description="When the node last drew with it.")
    online: bool = Field(description="The node has given a sign of life in the last seconds.")


class Model(BaseModel):
    """A model the service knows. `parameters_schema` is JSON Schema 2020-12."""

    id: uuid.UUID = Field(description="The model's id.")
    name: str = Field(description="What requests call it.")
    kind: str = Field(description="`sdxl` draws images; `lora` and `vae` go with one that does.")
    version: str = Field(description="Its version; a name may have several.")
    installed: bool = Field(description="Its files are there.")
    enabled: bool = Field(description="It is not switched off.")
    default: bool = Field(description="Jobs that name no model take it.")
    checkpoint_hash: str | None = Field(description="sha256 of its file, hex; of a folder, of its files' hashes.")
    source_uri: str = Field(description="Where it came from.")
    capabilities: list[str] = Field(description="Types of job that it can do.")
    parameters_schema: dict[str, Any] = Field(
        description="JSON Schema 2020-12 of `params`; `x-ui` helps to draw a form."
    )
    size_bytes: int = Field(description="Bytes of all its files.")
    nodes: list[ModelNode] = Field(description="Nodes that hold it, verified.")
    created_at: datetime = Field(description="When it was registered.")
    updated_at: datetime = Field(description="When this description last changed.")
    metadata: dict[str, Any] = Field(description="What else is known of it.")


class ModelList(BaseModel):
    """Every model."""

    items: list[Model] = Field(description="The models.")
    next_cursor: str | None = Field(default=None, description="Always null: all are on one page.")


class LogLine(BaseModel):
    """One event of a job; `seq` counts from 1 without gaps."""

    seq: int = Field(description="Counts the job's events from 1, without gaps.")
    ts: datetime = Field(description="When it happened.")
    code: str = _one_of("What happened.", EventCode)
    job_id: uuid.UUID = Field(description="The job.")
    step_id: uuid.UUID | None = Field(description="The step, if it is about one.")
    attempt: int | None = Field(description="The step's attempt.")
    level: str = _one_of("How much it matters.", ("debug", "info", "warning", "error"))
    payload: dict[str, Any] = Field(description="What the code says more about.")


class EventProgress(BaseModel):
    """How far the job was after an event; none of it ever goes down."""

    fraction: float = Field(description="0 to 1.")
    items_done: int = Field(description="Images that were finished.")
    items_total: int = Field(description="Images of all steps.")


class StreamEvent(LogLine):
    """One event of a job's stream: its line of the log, and the job's progress after it."""

    progress: EventProgress = Field(description="How far the job was then.")


class ItemProgress(BaseModel):
    """How far one image is."""

    item_index: int = Field(description="Which image of the step, from 0.")
    step: str = Field(description="The step's name.")
    status: str = _one_of("Where it is in its life.", (*ItemStatus, StepStatus.FAILED, StepStatus.CANCELLED))
    fraction: float = Field(description="0 to 1; never goes down.")
    stage: str | None = Field(description="What was last done for it.")
    seed: int | None = Field(description="Null until it is drawn.")
    artifact_id: uuid.UUID | None = Field(description="Null until the image is stored.")


class Progress(BaseModel):
    """How far a job and each of its images is."""

    job_id: uuid.UUID = Field(description="The job.")
    status: str = _one_of("Where it is in its life.", JobStatus)
    fraction: float = Field(description="0 to 1; never goes down, across retries too.")
    items_done: int = Field(description="Images that are finished.")
    items_total: int = Field(description="Images of all steps.")
    stage: str | None = Field(description="Of the image that was begun last.")
    eta_seconds: float | None = Field(description="Seconds to go; null where nothing was measured.")
    last_seq: int = Field(description="The `seq` of its last event.")
    items: list[ItemProgress] = Field(description="Each image, in the order of steps and items.")


class Check(BaseModel):
    """One dependency: whether it answers, whether the service needs it, how long it took."""

    ok: bool = Field(description="It answers.")
    required: bool = Field(description="The service cannot work without it.")
    ms: int = Field(description="Milliseconds that the check took.")
    message: str | None = Field(default=None, description="What is wrong.")


class Readiness(BaseModel):
    """`ok`, `degraded` when something that can be done without is away, `unavailable` when the service cannot work."""

    status: Literal["ok", "degraded", "unavailable"] = Field(description="All of it in a word.")
    checks: dict[str, Check] = Field(description="By dependency.")


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str = Field(description="Stable; what a program looks at.")
    message: str = Field(description="A sentence for a person.")
    details: dict[str, Any] = Field(default_factory=dict, description="What the code says more about.")
    job_id: str | None = Field(default=None, description="The job that it is about.")
    request_id: str = Field(description="Finds the request in the service's logs.")


class ErrorEnvelope(BaseModel):
    """Every error the service answers with."""

    error: ErrorBody


class Liveness(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"
