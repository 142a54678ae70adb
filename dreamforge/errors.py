"""Every error Dream Forge gives a name to.

    DreamForgeError                     internal
    ├── RequestError                    the caller can mend it
    │   ├── InvalidRequest              invalid_request
    │   ├── UnknownModel                unknown_model
    │   ├── ModelNotInstalled           model_not_installed
    │   ├── ModelDisabled               model_disabled
    │   ├── ModelIncompatible           model_incompatible
    │   ├── IdempotencyKeyReused        idempotency_key_reused
    │   ├── Unauthorized                unauthorized
    │   ├── Forbidden                   forbidden
    │   ├── NotFound                    not_found
    │   ├── Conflict                    conflict
    │   ├── RateLimited                 rate_limited
    │   └── QueueFull                   queue_full
    ├── Unavailable                     a dependency is away
    │   ├── DatabaseUnavailable         database_unavailable
    │   ├── QueueUnavailable            queue_unavailable
    │   └── StorageUnavailable          storage_unavailable
    ├── StepError                       a step ended badly
    │   ├── ModelCorrupt                model_corrupt
    │   ├── OutOfMemory                 oom
    │   ├── HostOutOfMemory             host_oom
    │   ├── RunnerCrashed               runner_crashed
    │   ├── RunnerStalled               runner_stalled
    │   ├── RunnerTimeout               runner_timeout
    │   ├── NodeError                   node_error
    │   ├── GpuError                    gpu_error
    │   ├── NoCapacity                  no_capacity
    │   ├── Cancelled                   cancelled
    │   ├── DiskFull                    disk_full
    │   └── SourceError                 a model does not come from its source
    │       ├── SourceNotFound          source_not_found
    │       ├── SourceForbidden         source_forbidden
    │       ├── SourceUnavailable       source_unavailable
    │       └── DownloadCorrupt         download_corrupt
    └── LeaseLost                       (never shown: a replaced attempt stops itself)

Each leaf has a stable ``code``, the one clients see in the error envelope and in ``steps.error_json``. The HTTP
status of a code is decided in ``dreamforge/api/errors.py``.
"""

import errno
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from uuid import UUID


class DreamForgeError(Exception):
    """Something went wrong inside the service."""

    code: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str | None = None,
        *,
        details: Mapping[str, Any] | None = None,
        suggestions: Sequence[str] = (),
        job_id: UUID | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or self.code).strip()
        self.details = dict(details or {})
        self.suggestions = tuple(suggestions)
        self.job_id = job_id
        super().__init__(self.message)


class RequestError(DreamForgeError):
    """The request cannot be served as it is."""


class InvalidRequest(RequestError):
    """The request is not valid; ``details.errors`` says where and why."""

    code = "invalid_request"


class UnknownModel(RequestError):
    """No model has this id or name."""

    code = "unknown_model"


class ModelNotInstalled(RequestError):
    """The model is known but its files are not installed."""

    code = "model_not_installed"


class ModelDisabled(RequestError):
    """The model is installed but switched off."""

    code = "model_disabled"


class ModelIncompatible(RequestError):
    """The model cannot do this type of job."""

    code = "model_incompatible"


class IdempotencyKeyReused(RequestError):
    """This Idempotency-Key was used with another body: take a new key for a new job."""

    code = "idempotency_key_reused"


class Unauthorized(RequestError):
    """The request names nobody whom the service knows."""

    code = "unauthorized"


class Forbidden(RequestError):
    """The service does not do this for whoever asks."""

    code = "forbidden"


class NotFound(RequestError):
    """There is nothing here with this id."""

    code = "not_found"


class Conflict(RequestError):
    """What is asked for does not fit the state of things."""

    code = "conflict"


class RateLimited(RequestError):
    """Too many requests; try again in a few seconds."""

    code = "rate_limited"


class QueueFull(RequestError):
    """Too many jobs are waiting; try again later."""

    code = "queue_full"


class SchemaUnknown(DreamForgeError):
    """The database was migrated by another version of Dream Forge, probably a newer one: use that version."""


class Unavailable(DreamForgeError):
    """Something the service depends on cannot be reached."""


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached; try again in a few seconds."""

    code = "database_unavailable"


class QueueUnavailable(Unavailable):
    """The queue cannot be reached; try again in a few seconds."""

    code = "queue_unavailable"


class StorageUnavailable(Unavailable):
    """The object store cannot be reached; try again in a few seconds."""

    code = "storage_unavailable"


class StepError(DreamForgeError):
    """A step ended badly."""


class ModelCorrupt(StepError):
    """The model's files are missing, unreadable or not what they should be."""

    code = "model_corrupt"


class OutOfMemory(StepError):
    """The GPU has too little memory for this call."""

    code = "oom"


class RunnerCrashed(StepError):
    """The runner process ended without a report."""

    code = "runner_crashed"


class HostOutOfMemory(StepError):
    """The node had too little memory for the step."""

    code = "host_oom"


class RunnerStalled(StepError):
    """The runner lives, but has said nothing for too long."""

    code = "runner_stalled"


class RunnerTimeout(StepError):
    """The step took longer than its time limit."""

    code = "runner_timeout"


class NodeError(StepError):
    """The node could not do what a step needs: it lacks room, memory, processes or rights."""

    code = "node_error"


class GpuError(StepError):
    """The GPU reported an error."""

    code = "gpu_error"


class NoCapacity(StepError):
    """No node could take the step in time."""

    code = "no_capacity"


class Cancelled(StepError):
    """The step was cancelled."""

    code = "cancelled"


class DiskFull(StepError):
    """There is too little room on the disk."""

    code = "disk_full"


class SourceError(StepError):
    """A model does not come from its source."""


class SourceNotFound(SourceError):
    """The source has nothing by this reference."""

    code = "source_not_found"


class SourceForbidden(SourceError):
    """The source gives this to nobody without a token, or not to this one."""

    code = "source_forbidden"


class SourceUnavailable(SourceError):
    """The source cannot be reached, or answers with errors; try again later."""

    code = "source_unavailable"


class DownloadCorrupt(SourceError):
    """What was downloaded is not what its source said. It is not kept."""

    code = "download_corrupt"


class LeaseLost(DreamForgeError):
    """This attempt has been replaced; it must publish nothing more."""


def reason_of(error: OSError) -> dict[str, Any]:
    """What the system says went wrong, as details: the name of its error (see errno(3)), and never a path."""
    return {"errno": errno.errorcode.get(error.errno or 0, "unknown")}
