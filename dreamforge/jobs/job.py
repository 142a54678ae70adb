"""Jobs, steps and items: their states and the only legal ways between them."""

from enum import StrEnum


class JobType(StrEnum):
    """What a job can be asked to do."""

    GENERATE = "generate"
    MODEL_DOWNLOAD = "model_download"


class Priority(StrEnum):
    """How urgent a job is; a higher one is claimed first."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class Lane(StrEnum):
    """The kind of slot that takes a step. Each lane has one RQ queue of its own."""

    GPU = "gpu"
    IO = "io"


class JobStatus(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """True when only a person's retry can change it again."""
        return self in {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}


class StepStatus(StrEnum):
    """Where a step is in its life."""

    WAITING = "waiting"
    """Its predecessor has not succeeded yet."""
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """True when only a person's retry can change it again."""
        return self in {StepStatus.SUCCEEDED, StepStatus.FAILED, StepStatus.CANCELLED}


class ItemStatus(StrEnum):
    """Where one image of a step is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"


JOB_TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLING, JobStatus.CANCELLED}),
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED, JobStatus.SUCCEEDED, JobStatus.FAILED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset({JobStatus.QUEUED}),
    JobStatus.CANCELLED: frozenset({JobStatus.QUEUED}),
}

STEP_TRANSITIONS: dict[StepStatus, frozenset[StepStatus]] = {
    StepStatus.WAITING: frozenset({StepStatus.QUEUED, StepStatus.CANCELLED}),
    StepStatus.QUEUED: frozenset({StepStatus.RUNNING, StepStatus.CANCELLED}),
    StepStatus.RUNNING: frozenset(
        {StepStatus.SUCCEEDED, StepStatus.FAILED, StepStatus.CANCELLED, StepStatus.QUEUED},
    ),
    StepStatus.SUCCEEDED: frozenset(),
    StepStatus.FAILED: frozenset({StepStatus.QUEUED, StepStatus.WAITING}),
    StepStatus.CANCELLED: frozenset({StepStatus.QUEUED, StepStatus.WAITING}),
}


def legal_predecessors(status: JobStatus) -> tuple[JobStatus, ...]:
    """Every status a job may come from when it becomes ``status``."""
    return tuple(before for before, after in JOB_TRANSITIONS.items() if status in after)


def legal_step_predecessors(status: StepStatus) -> tuple[StepStatus, ...]:
    """Every status a step may come from when it becomes ``status``."""
    return tuple(before for before, after in STEP_TRANSITIONS.items() if status in after)
