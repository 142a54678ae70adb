"""One claimed step in flight: handed to Ray, watched under our own deadlines, ended in Postgres."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import ray
from ray import ObjectRef
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from dreamforge.errors import Cancelled, DatabaseUnavailable, LeaseLost
from dreamforge.jobs.outcome import Failure
from dreamforge.store.claims import Claim, ClaimStore
from dreamforge.store.endings import EndingStore

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_CANCEL_POLL_SECONDS = 0.5
_DATABASE_PAUSE = 1.0

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
    ) -> None:
        self._claims = claims
        self._endings = endings
        self._submit = submit
        self._times = times
        self._must_leave = must_leave

    def run(self, claim: Claim) -> None:
        """Have the step run and finalize it, or put it back when the dispatcher leaves."""
        task = self._submit(claim)
        try:
            try:
                lost = self._watch(task, claim)
            except _Leaving:
                self._claims.put_back(claim.fence, reason="dispatcher_stopped")
            else:
                self._finalize(claim, lost)
        except LeaseLost as error:
            log.info("a step is no longer ours", extra={"step_id": str(claim.fence.step_id), "reason": str(error)})

    def _watch(self, task: "ObjectRef[None]", claim: Claim) -> Failure | None:
        """Wait for the task's end. Why there may be no outcome, or None. Raises ``_Leaving``."""
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
                if self._is_cancelled(claim):
                    ray.cancel(task, force=True)
                    return Failure(Cancelled.code, "The job was cancelled before its step began.")
            if is_ours and now - submitted >= start_timeout:
                ray.cancel(task, force=True)
                return Failure("no_capacity", "No node took the step in time.", {"asked_for": {"GPU": 1}})
        return _ended(task)

    def _renew(self, claim: Claim) -> bool:
        """False once the supervisor renews the lease itself."""
        try:
            return self._claims.renew_unstarted(claim.fence, lease_seconds=self._times.lease)
        except DatabaseUnavailable:
            log.warning("a lease could not be renewed: the database is away")
            return True

    def _is_cancelled(self, claim: Claim) -> bool:
        # A supervisor looks for itself. A step that still waits for a GPU has none.
        try:
            return self._claims.is_cancelled_unstarted(claim.fence)
        except DatabaseUnavailable:
            return False

    def _finalize(self, claim: Claim, lost: Failure | None) -> None:
        while True:
            try:
                verdict = self._endings.finalize(claim.fence, lost=lost)
            except DatabaseUnavailable:
                if self._must_leave():
                    return
                time.sleep(_DATABASE_PAUSE)
            else:
                log.info("step ended", extra={"step_id": str(claim.fence.step_id), "status": verdict.status})
                return


def _ended(task: "ObjectRef[None]") -> Failure | None:
    try:
        ray.get(task)
    except OutOfMemoryError:
        return Failure("host_oom", "The node ran out of memory.")
    except RayTaskError as error:
        # The message is the supervisor's own trace: for the log, not for clients.
        log.error("a supervisor failed", extra={"error": str(error)[-2000:]})
        return Failure("internal", "The step's supervisor failed.")
    except RayError as error:
        log.warning("a task was lost", extra={"error": type(error).__name__})
        return Failure("node_lost", "The step's process or node was lost.", {"ray": type(error).__name__})
    return None
