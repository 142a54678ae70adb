"""One attempt of a step, whatever it does: the lease is taken over, the work done, the outcome reported."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

from dreamforge.errors import DatabaseUnavailable, DreamForgeError
from dreamforge.jobs.events import StepStarted
from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.patience import for_seconds, outlast
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.fence import Fence
from dreamforge.store.step_calls import StepCall
from dreamforge.worker.halt import Halt
from dreamforge.worker.journal import FIRST_NUMBER, Journal
from dreamforge.worker.lease import LeaseKeeper

_Result = TypeVar("_Result")

_CLEAN_UP_SECONDS = 120.0
"""What the end of a step may take at most, past its time limit, before its lease runs out."""
_ABSENCES = 3
"""How often the database may be outlasted past that limit: at the start, by the journal, by the report."""

Work = Callable[[StepCall, Journal, Halt], Failure | None]
"""What a step does for the items that its call still names; what it fails with. May raise ``LeaseLost``."""


class RunningAttempt:
    """Runs ``Work`` under its step's lease. Times are seconds.

    ``node`` is an address, which several nodes may share; ``node_id`` is Ray's, None outside of Ray. ``metadata`` are
    the step's: whoever works adds to them.
    """

    def __init__(
        self,
        *,
        attempt: AttemptStore,
        fence: Fence,
        node: str,
        node_id: str | None,
        lease: float,
        lease_renew: float,
        database_grace: float,
        cancel_grace: float,
    ) -> None:
        self._attempt = attempt
        self._fence = fence
        self._node = node
        self._node_id = node_id
        self._lease = lease
        self._lease_renew = lease_renew
        self._database_grace = database_grace
        self._cancel_grace = cancel_grace
        self.metadata: dict[str, Any] = {"node": node, "node_id": node_id, "supervisor_pid": os.getpid()}

    def surely(self, write: Callable[[], _Result]) -> _Result:
        """What must not be lost to a short absence of the database."""
        return outlast(write, may_wait=for_seconds(self._database_grace))

    def load_call(self) -> StepCall:
        """What is to be done."""
        return self.surely(self._attempt.load_call)

    def run(self, call: StepCall, work: Work, *, limit: float, closing: Callable[[], None] = lambda: None) -> Outcome:
        """Take over the lease, work for at most ``limit``, report. Raises ``LeaseLost`` when it was replaced.

        ``closing`` comes between the work, which there may be none of, and the report.
        """
        with LeaseKeeper(
            attempt=self._attempt,
            lease_seconds=self._lease,
            renew_seconds=self._lease_renew,
            at_most=limit + _ABSENCES * self._database_grace + _CLEAN_UP_SECONDS,
        ) as lease:
            started = StepStarted(step=call.step, attempt=self._fence.attempt, node=self._node, node_id=self._node_id)
            self.surely(lambda: self._attempt.start(started, metadata=self.metadata, number=FIRST_NUMBER))
            outcome = Outcome(self._work(call, work, lease, limit=limit) if call.items else None)
            closing()
            self.surely(lambda: self._attempt.report(outcome, metadata=self.metadata))
        return outcome

    def _work(self, call: StepCall, work: Work, lease: LeaseKeeper, *, limit: float) -> Failure | None:
        with Journal(attempt=self._attempt, grace=self._database_grace) as journal:
            halt = Halt(lease=lease, time_limit=limit, cancel_grace=self._cancel_grace, check=journal.check)
            failure = work(call, journal, halt)
        try:
            journal.check()
        except DatabaseUnavailable as error:
            # What was not written has not happened.
            return failure or failure_of(error)
        return failure


def failure_of(error: DreamForgeError) -> Failure:
    """The error as an attempt reports it."""
    return Failure(error.code, error.message, error.details, list(error.suggestions))
