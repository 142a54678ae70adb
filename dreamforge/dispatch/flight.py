"""One claimed step in flight: handed to Ray, watched under our own deadlines, ended in Postgres."""

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray
from ray import ObjectRef
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from dreamforge.dispatch.cluster import GpuNode
from dreamforge.errors import Cancelled, DatabaseUnavailable, LeaseLost, NoCapacity, RunnerStalled, Unavailable
from dreamforge.jobs.outcome import Failure
from dreamforge.patience import for_seconds, outlast
from dreamforge.store.claims import Claim, ClaimStore, Whereabouts
from dreamforge.store.endings import EndingStore
from dreamforge.store.fence import Fence

log = logging.getLogger(__name__)

NODE_LOST = "node_lost"
_POLL_SECONDS = 0.25
_CANCEL_POLL_SECONDS = 0.5
_PUT_BACK_SECONDS = 3.0
"""How long a step may take to be put back while the database is away: Serve will not wait longer."""
_END_SECONDS = 5.0
"""How long a task that was cancelled may take to end, before its process is killed."""

Submit = Callable[[Claim], "ObjectRef[None]"]
"""Hands a claimed step to Ray and returns the task's reference."""
Kill = Callable[[Claim, Whereabouts | None], None]
"""Kills the process of a claim's task, on whichever node it is, known or not; nothing happens when it is gone."""


@dataclass(frozen=True)
class Tasks:
    """How the steps of one lane become tasks of Ray, and how such a task is ended."""

    submit: Submit
    kill: Kill


@dataclass(frozen=True)
class FlightTimes:
    """Seconds: of a lease, between its renewals, and what a step waits for a cluster that has a GPU, or its process for
    its first write.
    """

    lease: float
    lease_renew: float
    start_timeout: float


class _Leaving(Exception):
    """The dispatcher can wait no longer."""


class Flight:
    """Runs a claim to its end.

    ``must_leave`` turns true when the dispatcher can wait no longer; ``nodes`` is what there is to run on, None while
    nobody knows.
    """

    def __init__(
        self,
        *,
        claims: ClaimStore,
        endings: EndingStore,
        tasks: Tasks,
        nodes: Callable[[], Sequence[GpuNode] | None],
        times: FlightTimes,
        must_leave: Callable[[], bool],
        new_token: Callable[[], uuid.UUID],
    ) -> None:
        self._claims = claims
        self._endings = endings
        self._tasks = tasks
        self._nodes = nodes
        self._times = times
        self._must_leave = must_leave
        self._new_token = new_token

    def run(self, claim: Claim) -> None:
        """Have the step run and finalize it, or put it back when the dispatcher leaves.

        Whatever goes wrong here itself is raised, with the attempt ended as that of a lost dispatcher: its next claim
        is somebody else's, and there is an end to such claims.
        """
        try:
            self._run(claim)
        except LeaseLost as error:
            # What is still running writes nothing; it is not there for long.
            log.info("a step is no longer ours", extra={"step_id": str(claim.fence.step_id), "reason": str(error)})
        except Exception:
            with contextlib.suppress(DatabaseUnavailable, LeaseLost):
                self._endings.finalize(claim.fence, lost=Failure(NODE_LOST, "The step's dispatcher failed."))
            raise

    def _run(self, claim: Claim) -> None:
        task = self._tasks.submit(claim)
        try:
            ended = self._watch(task, claim)
        except _Leaving:
            self._put_back(claim.fence)
            return
        try:
            self._finalize(ended)
        except DatabaseUnavailable:
            # Only when it may wait no longer.
            self._put_back(ended.fence)

    def _watch(self, task: "ObjectRef[None]", claim: Claim) -> "_Ended":
        """Wait for the task's end. Raises ``_Leaving``, and ``LeaseLost`` once the attempt was replaced."""
        submitted = renewed = looked = time.monotonic()
        arrived: float | None = None
        whereabouts: Whereabouts | None = None
        while not ray.wait([task], timeout=_POLL_SECONDS)[0]:
            now = time.monotonic()
            if self._must_leave():
                ray.cancel(task, force=True)
                raise _Leaving
            if now - renewed >= self._times.lease_renew:
                renewed = now
                try:
                    whereabouts = self._keep(claim, whereabouts)
                except LeaseLost:
                    self._end(task, claim, whereabouts)
                    raise
                if whereabouts is not None and whereabouts.has_reported:
                    # It goes on holding its GPU, without a step.
                    return _Ended(claim.fence, None)
                arrived = arrived or (now if whereabouts else None)
            if not (whereabouts and whereabouts.has_begun) and now - looked >= _CANCEL_POLL_SECONDS:
                looked = now
                # A supervisor looks for itself. A step that still waits for a GPU has none.
                why = self._cancelled(claim) or self._why_not_begun(claim, waited=now - submitted, arrived=arrived)
                fence = self._withdraw(claim) if why else None
                if why and fence:
                    self._end(task, claim, whereabouts)
                    return _Ended(fence, why)
        return _Ended(claim.fence, _why_lost(task))

    def _keep(self, claim: Claim, known: Whereabouts | None) -> Whereabouts | None:
        """Renew the lease until the supervisor has taken over, and see where that is. Raises ``LeaseLost``."""
        try:
            if not (known and known.has_begun):
                self._claims.renew_unstarted(claim.fence, lease_seconds=self._times.lease)
            return self._claims.whereabouts(claim.fence)
        except DatabaseUnavailable:
            log.warning("a lease could not be looked after: the database is away")
            return known

    def _end(self, task: "ObjectRef[None]", claim: Claim, whereabouts: Whereabouts | None) -> None:
        """End a task that was replaced: while it lives, Ray gives its GPU to nobody else."""
        ray.cancel(task, force=True)
        if not ray.wait([task], timeout=_END_SECONDS)[0]:
            # One that stands still does not hear Ray either.
            log.warning("killing a supervisor that was replaced", extra={"step_id": str(claim.fence.step_id)})
            self._tasks.kill(claim, whereabouts)

    def _why_not_begun(self, claim: Claim, *, waited: float, arrived: float | None) -> Failure | None:
        """Why a step that has not begun is to wait no longer, if it is."""
        if arrived is not None:
            stalled = time.monotonic() - arrived
            if stalled < self._times.start_timeout:
                return None
            return Failure(RunnerStalled.code, f"The step's process has not begun its work within {stalled:.0f} s.")
        own_limit = claim.options.get("start_timeout")
        if waited < float(own_limit or self._times.start_timeout):
            return None
        gpus, nodes = self._gpus()
        if gpus is None or (gpus and not own_limit):
            # They are busy. Only whoever has named a time is better served by none.
            return None
        message = f"No GPU was free for the step within {waited:.0f} s." if gpus else "The cluster has no GPU."
        details = {"asked_for": {"GPU": 1}, "cluster": {"GPU": gpus, "nodes": nodes}}
        return Failure(NoCapacity.code, message, details)

    def _gpus(self) -> tuple[int | None, int]:
        """The cluster's GPUs, and the nodes that have them; None while nobody knows."""
        nodes = self._nodes()
        return (None, 0) if nodes is None else (sum(node.gpus for node in nodes), len(nodes))

    def _withdraw(self, claim: Claim) -> Fence | None:
        try:
            return self._claims.withdraw(claim.fence, lease_token=self._new_token())
        except DatabaseUnavailable:
            return None

    def _cancelled(self, claim: Claim) -> Failure | None:
        try:
            if not self._claims.is_cancelled_unstarted(claim.fence):
                return None
        except DatabaseUnavailable:
            return None
        return Failure(Cancelled.code, "The job was cancelled before its step began.")

    def _finalize(self, ended: "_Ended") -> None:
        verdict = outlast(
            lambda: self._endings.finalize(ended.fence, lost=ended.lost), may_wait=lambda: not self._must_leave()
        )
        log.info("step ended", extra={"step_id": str(ended.fence.step_id), "status": verdict.status})

    def _put_back(self, fence: Fence) -> None:
        try:
            outlast(lambda: self._claims.put_back(fence), may_wait=for_seconds(_PUT_BACK_SECONDS))
        except (DatabaseUnavailable, LeaseLost) as error:
            log.warning("a step could not be put back", extra={"reason": error.message})


@dataclass(frozen=True)
class _Ended:
    """A task that has ended. ``lost`` is why there may be no outcome."""

    fence: Fence
    lost: Failure | None


def _why_lost(task: "ObjectRef[None]") -> Failure | None:
    try:
        ray.get(task)
    except OutOfMemoryError:
        return Failure("host_oom", "The node ran out of memory.")
    except RayTaskError as error:
        # The message is the supervisor's own trace: for the log, not for clients.
        log.error("a supervisor failed", extra={"error": str(error)[-2000:]})
        if isinstance(error.cause, Unavailable):
            return Failure(error.cause.code, error.cause.message)
        return Failure("internal", "The step's supervisor failed.")
    except WorkerCrashedError:
        return None
    except RayError as error:
        log.warning("a task was lost", extra={"error": type(error).__name__})
        return Failure(NODE_LOST, "The step's process or node was lost.", {"ray": type(error).__name__})
    return None
