"""One step, from memory reading to memory reading."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial

from dreamforge.blobs import Blobs
from dreamforge.errors import ModelCorrupt, ModelNotInstalled, StepError, Unavailable
from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.fence import Fence
from dreamforge.store.step_calls import StepCall
from dreamforge.worker.attempt import RunningAttempt, failure_of
from dreamforge.worker.child import RunnerProcess
from dreamforge.worker.gpu_health import GpuHealth
from dreamforge.worker.gpu_lock import gpu_lock
from dreamforge.worker.halt import Halt
from dreamforge.worker.journal import Journal
from dreamforge.worker.memory import MemoryWatch
from dreamforge.worker.model_supply import ModelStock, ModelSupply
from dreamforge.worker.node import Limits, Node
from dreamforge.worker.saving import ImageSaver, Shelf, save_kept
from dreamforge.worker.session import Session
from dreamforge.worker.spool import Spool
from dreamforge.worker.work import Work


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
        stock: ModelStock,
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
        self._stock = stock
        self._limits = limits
        self._new_id = new_id
        self._now = now
        self._undead: RunnerProcess | None = None
        self._running = RunningAttempt(
            attempt=attempt,
            fence=fence,
            node=node.name,
            node_id=node.id,
            lease=limits.lease,
            lease_renew=limits.lease_renew,
            database_grace=limits.database_grace,
            cancel_grace=limits.cancel_grace,
        )
        self._metadata = self._running.metadata

    def run(self) -> Outcome:
        """Take over the lease, run, report. The runner of a job that is to be cancelled is told to stop."""
        call = self._running.load_call()
        try:
            return self._running.run(call, self._work, limit=self._time_limit(call), closing=self._note_gpu)
        finally:
            # The step is over. The task is not: Ray gives its GPU to nobody while it lasts.
            if self._undead is not None:
                self._undead.await_death()
            self._health.hold()

    def _note_gpu(self) -> None:
        self._metadata["holds_gpu"] = self._undead is not None or self._health.is_dirty

    def _note_undead(self, runner: RunnerProcess) -> None:
        self._undead = runner

    def _time_limit(self, call: StepCall) -> float:
        """Seconds: the job's own, or what such a step may take."""
        return float(call.options.get("step_timeout") or self._limits.step + self._limits.step_item * len(call.items))

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
            missing_items=lambda: self._running.surely(self._attempt.missing_items),
            lock=lambda: gpu_lock(
                self._node.locks_folder, self._memory.gpu_uuid, timeout=self._limits.stall, check=halt.check_idle
            ),
        )
        try:
            if save_kept(call, shelf.spool, saver):
                call = replace(call, items=self._running.surely(self._attempt.missing_items))
            failure = self._draw(call, work, self._supply(journal, halt)) if call.items else None
        except (StepError, ModelNotInstalled, Unavailable) as error:
            failure = failure_of(error)
        self._metadata["memory"] = self._memory.figures()
        return failure

    def _supply(self, journal: Journal, halt: Halt) -> ModelSupply:
        return ModelSupply(
            stock=self._stock,
            blobs=self._blobs,
            node=self._node,
            limits=self._limits,
            journal=journal,
            halt=halt,
            owner=f"step {self._fence.step_id} on {self._node.name}",
        )

    def _draw(self, call: StepCall, work: Work, supply: ModelSupply) -> Failure | None:
        # Before the GPU is taken: others may draw there meanwhile.
        with supply.models_of(call) as models:
            failure = work.run(models.located(call))
            if failure is None or failure.code != ModelCorrupt.code or not models.mend():
                return failure
            items = self._running.surely(self._attempt.missing_items)
            return work.run(models.located(replace(call, items=items)))
