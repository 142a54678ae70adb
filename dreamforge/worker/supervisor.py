"""One step, from memory reading to memory reading."""

import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from dreamforge.blobs import Blobs
from dreamforge.errors import DatabaseUnavailable, DreamForgeError, StepError, Unavailable
from dreamforge.jobs.events import StepStarted
from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.patience import for_seconds, outlast
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.fence import Fence
from dreamforge.store.step_calls import StepCall
from dreamforge.worker.child import RunnerProcess
from dreamforge.worker.gpu_health import GpuHealth
from dreamforge.worker.gpu_lock import gpu_lock
from dreamforge.worker.halt import Halt
from dreamforge.worker.journal import FIRST_NUMBER, Journal
from dreamforge.worker.lease import LeaseKeeper
from dreamforge.worker.memory import MemoryWatch
from dreamforge.worker.node import Limits, Node
from dreamforge.worker.saving import ImageSaver, Shelf, save_kept
from dreamforge.worker.session import Session
from dreamforge.worker.spool import Spool
from dreamforge.worker.work import Work

_Result = TypeVar("_Result")

_CLEAN_UP_SECONDS = 120.0
"""What the end of a step may take at most, past its time limit, before its lease runs out."""
_ABSENCES = 3
"""How often the database may be outlasted past that limit: at the start, by the journal, by the report."""


class Supervisor:
    """Runs one attempt of one step and reports its outcome. Raises ``LeaseLost`` when it was replaced."""

    def __init__(
        self,
        *,
        attempt: AttemptStore,
        fence: Fence,
        blobs: Blobs,
        memory: MemoryWatch,
        health: GpuHealth,
        node: Node,
        limits: Limits,
        new_id: Callable[[], uuid.UUID],
        now: Callable[[], datetime],
    ) -> None:
        self._attempt = attempt
        self._fence = fence
        self._blobs = blobs
        self._memory = memory
        self._health = health
        self._node = node
        self._limits = limits
        self._new_id = new_id
        self._now = now
        self._undead: RunnerProcess | None = None
        self._metadata: dict[str, Any] = {"node": node.name, "node_id": node.id, "supervisor_pid": os.getpid()}

    def run(self) -> Outcome:
        """Take over the lease, run, report. The runner of a job that is to be cancelled is told to stop."""
        call = self._surely(self._attempt.load_call)
        limit = self._time_limit(call)
        try:
            with LeaseKeeper(
                attempt=self._attempt,
                lease_seconds=self._limits.lease,
                renew_seconds=self._limits.lease_renew,
                at_most=limit + _ABSENCES * self._limits.database_grace + _CLEAN_UP_SECONDS,
            ) as lease:
                started = StepStarted(
                    step=call.step, attempt=self._fence.attempt, node=self._node.name, node_id=self._node.id
                )
                self._surely(lambda: self._attempt.start(started, metadata=self._metadata, number=FIRST_NUMBER))
                outcome = Outcome(self._run(call, lease, limit=limit) if call.items else None)
                self._metadata["holds_gpu"] = self._undead is not None or self._health.is_dirty
                self._surely(lambda: self._attempt.report(outcome, metadata=self._metadata))
        finally:
            # The step is over. The task is not: Ray gives its GPU to nobody while it lasts.
            if self._undead is not None:
                self._undead.await_death()
            self._health.hold()
        return outcome

    def _note_undead(self, runner: RunnerProcess) -> None:
        self._undead = runner

    def _surely(self, write: Callable[[], _Result]) -> _Result:
        """What must not be lost to a short absence of the database."""
        return outlast(write, may_wait=for_seconds(self._limits.database_grace))

    def _time_limit(self, call: StepCall) -> float:
        """Seconds: the job's own, or what such a step may take."""
        return float(call.options.get("step_timeout") or self._limits.step + self._limits.step_item * len(call.items))

    def _run(self, call: StepCall, lease: LeaseKeeper, *, limit: float) -> Failure | None:
        with Journal(attempt=self._attempt, grace=self._limits.database_grace) as journal:
            halt = Halt(lease=lease, time_limit=limit, cancel_grace=self._limits.cancel_grace, check=journal.check)
            failure = self._work(call, journal, halt)
        try:
            journal.check()
        except DatabaseUnavailable as error:
            # What was not written has not happened.
            return failure or failure_of(error)
        return failure

    def _work(self, call: StepCall, journal: Journal, halt: Halt) -> Failure | None:
        shelf = Shelf(
            blobs=self._blobs,
            spool=Spool(self._node.spool_folder, step_id=self._fence.step_id),
            job_id=self._fence.job_id,
            user_id=call.user_id,
            step=call.step,
            grace=self._limits.storage_grace,
        )
        saver = partial(ImageSaver, journal=journal, shelf=shelf, check=halt.check, new_id=self._new_id, now=self._now)
        session = Session(
            fence=self._fence,
            journal=journal,
            saver=saver,
            memory=self._memory,
            node=self._node,
            halt=halt,
            stall_timeout=self._limits.stall,
            metadata=self._metadata,
            on_undead=self._note_undead,
        )
        work = Work(
            session=session,
            journal=journal,
            halt=halt,
            memory=self._memory,
            health=self._health,
            missing_items=lambda: self._surely(self._attempt.missing_items),
            lock=lambda: gpu_lock(
                self._node.locks_folder, self._memory.gpu_uuid, timeout=self._limits.stall, check=halt.check_idle
            ),
        )
        try:
            if save_kept(call, shelf.spool, saver):
                call = replace(call, items=self._surely(self._attempt.missing_items))
            failure = work.run(call) if call.items else None
        except (StepError, Unavailable) as error:
            failure = failure_of(error)
        self._metadata["memory"] = self._memory.figures()
        return failure


def failure_of(error: DreamForgeError) -> Failure:
    """The error as an attempt reports it."""
    return Failure(error.code, error.message, error.details, list(error.suggestions))
