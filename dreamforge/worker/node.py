"""Where a step runs, and how long it may take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreamforge.worker.child import RUNNER


@dataclass(frozen=True)
class Limits:
    """Times in seconds.

    ``lease`` and ``lease_renew``: of the lease, and between its renewals. ``step`` and ``step_item``: what a step may
    take, and each of its images more. ``stall``: a runner's silence. ``cancel_grace``: a cancelled runner's way to its
    next step of denoising. ``database_grace`` and ``storage_grace``: absences of the database and the object store.
    """

    lease: float
    lease_renew: float
    step: float
    step_item: float
    stall: float
    cancel_grace: float
    database_grace: float
    storage_grace: float


@dataclass(frozen=True)
class Node:
    """Where the supervisor runs. ``environment`` is what a runner's is chosen from.

    ``name`` is an address, which several nodes may share; ``id`` is Ray's, None outside of Ray. ``runner`` is the
    runner's program, ``step_memory`` the bytes of the node's memory that it may take.
    """

    name: str
    locks_folder: Path
    spool_folder: Path
    environment: Mapping[str, str]
    id: str | None = None
    step_memory: int | None = None
    runner: Sequence[str] = RUNNER
