"""Every event of a job: its code, its level and its payload.

An event is written in the same transaction as the state it reports, with a ``seq`` that is dense per job.
"""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, ClassVar


class Level(StrEnum):
    """How loud an event is."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class EventCode(StrEnum):
    """The codes, as clients see them."""

    JOB_QUEUED = "job.queued"
    JOB_STARTED = "job.started"
    JOB_CANCEL_REQUESTED = "job.cancel_requested"
    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    STEP_STARTED = "step.started"
    STEP_RETRYING = "step.retrying"
    STEP_RESCUED = "step.rescued"
    STEP_DEGRADED = "step.degraded"
    STEP_SUCCEEDED = "step.succeeded"
    STEP_FAILED = "step.failed"
    STEP_CANCELLED = "step.cancelled"
    MODEL_FETCHING = "model.fetching"
    MODEL_INSTALLED = "model.installed"
    MODEL_LOADING = "model.loading"
    MODEL_LOADED = "model.loaded"
    ITEM_STARTED = "item.started"
    ITEM_PROGRESS = "item.progress"
    ITEM_PREVIEW = "item.preview"
    ITEM_FINISHED = "item.finished"
    ARTIFACT_CREATED = "artifact.created"
    GPU_MEMORY = "gpu.memory"
    LOG = "log"


@dataclass(frozen=True)
class Event:
    """Base of all events."""

    code: ClassVar[EventCode]
    level: ClassVar[Level] = Level.INFO

    def payload(self) -> dict[str, Any]:
        """The event's own fields, as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class JobQueued(Event):
    """``reason`` is `submitted` or `retry`."""

    code: ClassVar[EventCode] = EventCode.JOB_QUEUED
    reason: str


@dataclass(frozen=True)
class JobStarted(Event):
    """The job's first step was claimed."""

    code: ClassVar[EventCode] = EventCode.JOB_STARTED


@dataclass(frozen=True)
class JobCancelRequested(Event):
    """Somebody asked for the job to end; once per job and life."""

    code: ClassVar[EventCode] = EventCode.JOB_CANCEL_REQUESTED


@dataclass(frozen=True)
class JobCancelled(Event):
    """The job ended on request; what was finished stays. ``cancel_latency_ms`` from the request to the end."""

    code: ClassVar[EventCode] = EventCode.JOB_CANCELLED
    items_done: int
    cancel_latency_ms: int


@dataclass(frozen=True)
class JobSucceeded(Event):
    """Every step succeeded."""

    code: ClassVar[EventCode] = EventCode.JOB_SUCCEEDED
    items_done: int


@dataclass(frozen=True)
class JobFailed(Event):
    """A step failed for good; ``error`` is the job's error object."""

    code: ClassVar[EventCode] = EventCode.JOB_FAILED
    level: ClassVar[Level] = Level.ERROR
    error: dict[str, Any]


@dataclass(frozen=True)
class StepStarted(Event):
    """A runner is being started for the step on ``node``, an address; ``node_id`` is Ray's, None outside of Ray."""

    code: ClassVar[EventCode] = EventCode.STEP_STARTED
    step: str
    attempt: int
    node: str
    node_id: str | None = None


@dataclass(frozen=True)
class StepRetrying(Event):
    """The attempt failed with ``error``, and another one comes in ``seconds``.

    ``spent`` is how often ``budget`` (`failures`, `crashes`) has been charged.
    """

    code: ClassVar[EventCode] = EventCode.STEP_RETRYING
    level: ClassVar[Level] = Level.WARNING
    step: str
    error: dict[str, Any]
    budget: str
    spent: int
    seconds: float


@dataclass(frozen=True)
class StepDegraded(Event):
    """The GPU had too little memory (``error``); the step goes on in another process, with more ``savings``.

    ``rung`` counts from 1, see `dreamforge.jobs.memory_ladder`.
    """

    code: ClassVar[EventCode] = EventCode.STEP_DEGRADED
    level: ClassVar[Level] = Level.WARNING
    step: str
    rung: int
    savings: list[str]
    error: dict[str, Any]


@dataclass(frozen=True)
class StepRescued(Event):
    """The step's dispatcher or node was lost, or it was put back on shutdown; it is queued again."""

    code: ClassVar[EventCode] = EventCode.STEP_RESCUED
    level: ClassVar[Level] = Level.WARNING
    step: str
    reason: str


@dataclass(frozen=True)
class StepSucceeded(Event):
    """The step is done."""

    code: ClassVar[EventCode] = EventCode.STEP_SUCCEEDED
    step: str


@dataclass(frozen=True)
class StepFailed(Event):
    """The step is over without its result."""

    code: ClassVar[EventCode] = EventCode.STEP_FAILED
    level: ClassVar[Level] = Level.ERROR
    step: str
    error: dict[str, Any]


@dataclass(frozen=True)
class StepCancelled(Event):
    """The step is over because its job is. ``cancel_latency_ms`` is None when nobody asked: an earlier step failed."""

    code: ClassVar[EventCode] = EventCode.STEP_CANCELLED
    step: str
    cancel_latency_ms: int | None


@dataclass(frozen=True)
class ModelFetching(Event):
    """Files of a model are on their way to where they are needed: ``bytes_done`` of ``bytes_total``.

    ``origin``: where they come from, `object_store` or the scheme of a source. ``file``: of the last bytes, None for
    all of them together.
    """

    code: ClassVar[EventCode] = EventCode.MODEL_FETCHING
    model: str
    origin: str
    bytes_done: int
    bytes_total: int | None
    file: str | None = None


@dataclass(frozen=True)
class ModelInstalled(Event):
    """A model was downloaded and can be used. ``is_new``: the registry did not know it before."""

    code: ClassVar[EventCode] = EventCode.MODEL_INSTALLED
    model_id: str
    name: str
    version: str
    is_new: bool


@dataclass(frozen=True)
class ModelLoading(Event):
    """The runner loads the model."""

    code: ClassVar[EventCode] = EventCode.MODEL_LOADING
    model: str


@dataclass(frozen=True)
class ModelLoaded(Event):
    """The model is ready after ``seconds``."""

    code: ClassVar[EventCode] = EventCode.MODEL_LOADED
    model: str
    seconds: float


@dataclass(frozen=True)
class ItemStarted(Event):
    """An image is begun, with this seed; None for what is none, as a model that is downloaded."""

    code: ClassVar[EventCode] = EventCode.ITEM_STARTED
    item_index: int
    seed: int | None


@dataclass(frozen=True)
class ItemProgress(Event):
    """``stage_progress`` within the stage and ``progress`` of the item, both in 0..1."""

    code: ClassVar[EventCode] = EventCode.ITEM_PROGRESS
    item_index: int
    stage: str
    stage_progress: float
    progress: float


@dataclass(frozen=True)
class ArtifactCreated(Event):
    """An image is stored and its row is written."""

    code: ClassVar[EventCode] = EventCode.ARTIFACT_CREATED
    item_index: int
    artifact_id: str
    size_bytes: int
    checksum: str


@dataclass(frozen=True)
class ItemFinished(Event):
    """The image, or what else the item is, is finished; ``timings`` are seconds by stage."""

    code: ClassVar[EventCode] = EventCode.ITEM_FINISHED
    item_index: int
    seed: int | None
    timings: dict[str, float]


@dataclass(frozen=True)
class GpuMemory(Event):
    """A reading of the GPU's memory. ``phase`` is `before`, `peak` or `after`; bytes are None without a GPU.

    ``others_bytes`` is what processes that have nothing to do with the step use of it, where the driver tells.
    """

    code: ClassVar[EventCode] = EventCode.GPU_MEMORY
    phase: str
    available: bool
    message: str | None = None
    gpu_uuid: str | None = None
    used_bytes: int | None = None
    total_bytes: int | None = None
    others_bytes: int | None = None


@dataclass(frozen=True)
class GpuMemoryLeaked(GpuMemory):
    """The memory did not come back to its level before the step."""

    level: ClassVar[Level] = Level.ERROR
    error_code: str = "gpu_memory_leaked"


@dataclass(frozen=True)
class RunnerLog(Event):
    """A line from the runner. ``details`` may hold the end of its output."""

    code: ClassVar[EventCode] = EventCode.LOG
    message: str
    details: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class RunnerWarning(RunnerLog):
    """A line that should be seen."""

    level: ClassVar[Level] = Level.WARNING
