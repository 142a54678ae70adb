"""One claimed step in flight: handed to Ray, watched under our own deadlines, ended in Postgres."""

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import ray
from ray import ObjectRef
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from dreamforge.errors import Cancelled, DatabaseUnavailable, LeaseLost, NoCapacity, Unavailable
from dreamforge.jobs.outcome import Failure
from dreamforge.store.claims import Claim, ClaimStore
from dreamforge.store.endings import EndingStore
from dreamforge.store.fence import Fence
from dreamforge.store.patience import for_seconds, outlast

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_CANCEL_POLL_SECONDS = 0.5
_PUT_BACK_SECONDS = 3.0
"""How long a step may take to be put back while the database is away: Serve will not wait longer."""

Submit = Callable[[Claim], "ObjectRef[None]"]
"""Hands a claimed step to Ray and returns the task's reference."""


@dataclass(frozen=True)
class FlightTimes:
    """Seconds: of a lease, between its renewals, and a step's wait for a GPU."""

    lease: float
    lease_renew: float
    start_timeout: float


class _Leaving(Exception):
    """The dispatcher can wait no longer."""


class Flight:
    """Runs a claim to its end. ``must_leave`` turns true when the dispatcher can wait no longer."""

    def __init__(
        self,
        *,
        claims: ClaimStore,
        endings: EndingStore,
        submit: Submit,
        times: FlightTimes,
        must_leave: Callable[[], bool],
        new_token: Callable[[], uuid.UUID],
    ) -> None:
        self._claims = claims
        self._endings = endings
        self._submit = submit
        self._times = times
        self._must_leave = must_leave
        self._new_token = new_token

    def run(self, claim: Claim) -> None:
        """Have the step run and finalize it, or put it back when the dispatcher leaves.

        Whatever goes wrong here itself is raised, with the step put back: its next claim is somebody else's.
        """
        try:
            self._run(claim)
        except LeaseLost as error:
            log.info("a step is no longer ours", extra={"step_id": str(claim.fence.step_id), "reason": str(error)})
        except DatabaseUnavailable:
            # Only when it may wait no longer.
            self._put_back(claim, reason="dispatcher_stopped")
        except Exception:
            self._put_back(claim, reason="dispatcher_failed")
            raise

    def _run(self, claim: Claim) -> None:
        task = self._submit(claim)
        try:
            ended = self._watch(task, claim)
        except _Leaving:
            self._put_back(claim, reason="dispatcher_stopped")
        else:
            self._finalize(ended)

    def _watch(self, task: "ObjectRef[None]", claim: Claim) -> "_Ended":
        """Wait for the task's end. Raises ``_Leaving``."""
        submitted = renewed = looked = time.monotonic()
        is_ours = True
        start_timeout = float(claim.options.get("start_timeout") or self._times.start_timeout)
        while not ray.wait([task], timeout=_POLL_SECONDS)[0]:
            now = time.monotonic()
            if self._must_leave():
                ray.cancel(task, force=True)
                raise _Leaving
            if is_ours and now - renewed >= self._times.lease_renew:
                is_ours = self._renew(claim)
                renewed = now
            if is_ours and now - looked >= _CANCEL_POLL_SECONDS:
                looked = now
                why = self._why_not_start(claim, waited=now - submitted, at_most=start_timeout)
                fence = self._withdraw(claim) if why else None
                if why and fence:
                    ray.cancel(task, force=True)
                    return _Ended(fence, why)
        return _Ended(claim.fence, _why_lost(task))

    def _why_not_start(self, claim: Claim, *, waited: float, at_most: float) -> Failure | None:
        # A supervisor looks for itself. A step that still waits for a GPU has none.
        if self._is_cancelled(claim):
            return Failure(Cancelled.code, "The job was cancelled before its step began.")
        if waited >= at_most:
            return Failure(NoCapacity.code, "No node took the step in time.", {"asked_for": {"GPU": 1}})
        return None

    def _withdraw(self, claim: Claim) -> Fence | None:
        try:
            return self._claims.withdraw(claim.fence, lease_token=self._new_token())
        except DatabaseUnavailable:
            return None

    def _renew(self, claim: Claim) -> bool:
        """False once the supervisor renews the lease itself."""
        try:
            return self._claims.renew_unstarted(claim.fence, lease_seconds=self._times.lease)
        except DatabaseUnavailable:
            log.warning("a lease could not be renewed: the database is away")
            return True

    def _is_cancelled(self, claim: Claim) -> bool:
        try:
            return self._claims.is_cancelled_unstarted(claim.fence)
        except DatabaseUnavailable:
            return False

    def _finalize(self, ended: "_Ended") -> None:
        verdict = outlast(
            lambda: self._endings.finalize(ended.fence, lost=ended.lost), may_wait=lambda: not self._must_leave()
        )
        log.info("step ended", extra={"step_id": str(ended.fence.step_id), "status": verdict.status})

    def _put_back(self, claim: Claim, *, reason: str) -> None:
        try:
            outlast(lambda: self._claims.put_back(claim.fence, reason=reason), may_wait=for_seconds(_PUT_BACK_SECONDS))
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
        return Failure("node_lost", "The step's process or node was lost.", {"ray": type(error).__name__})
    return None
