"""One step, from memory reading to memory reading."""

import logging
import os
import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from dreamforge.blobs import Blobs
from dreamforge.errors import (
    DatabaseUnavailable,
    DreamForgeError,
    ModelCorrupt,
    RunnerCrashed,
    RunnerStalled,
    RunnerTimeout,
    StepError,
    Unavailable,
)
from dreamforge.jobs.channel import ChannelClosed
from dreamforge.jobs.events import RunnerWarning, StepStarted
from dreamforge.jobs.frames import FrameError, PrepareStep, Ready, StepFailed
from dreamforge.jobs.outcome import Failure, Outcome
from dreamforge.store.attempts import AttemptStore, StepCall
from dreamforge.store.fence import Fence
from dreamforge.store.patience import for_seconds, outlast
from dreamforge.worker.child import RUNNER, RunnerProcess
from dreamforge.worker.drawing import Drawing
from dreamforge.worker.gpu_lock import gpu_lock
from dreamforge.worker.halt import Halt
from dreamforge.worker.lease import LeaseKeeper
from dreamforge.worker.memory import MemoryWatch
from dreamforge.worker.reports import reported_failure
from dreamforge.worker.saving import ImageSaver, Origin
from dreamforge.worker.strays import end_abandoned

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

STOP_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL for a runner that is to end."""
LEAVE_SECONDS = 10.0
"""Seconds an acknowledged runner may take to leave."""
_CLEAN_UP_SECONDS = 120.0
"""What the end of a step may take at most, past its time limit, before its lease runs out."""


@dataclass(frozen=True)
class Limits:
    """Times in seconds.

    ``lease`` and ``lease_renew``: of the lease, and between its renewals. ``step`` and ``step_item``: what a step may
    take, and each of its images more. ``stall``: a runner's silence. ``cancel_grace``: a cancelled runner's way to its
    next step of denoising. ``database_grace``: an absence of the database.
    """

    lease: float
    lease_renew: float
    step: float
    step_item: float
    stall: float
    cancel_grace: float
    database_grace: float


@dataclass(frozen=True)
class Node:
    """Where the supervisor runs. ``environment`` is what a runner's is chosen from.

    ``name`` is an address, which several nodes may share; ``id`` is Ray's, None outside of Ray. ``runner`` is the
    runner's program.
    """

    name: str
    locks_folder: Path
    environment: Mapping[str, str]
    id: str | None = None
    runner: Sequence[str] = RUNNER


class Supervisor:
    """Runs one attempt of one step and reports its outcome. Raises ``LeaseLost`` when it was replaced."""

    def __init__(
        self,
        *,
        attempt: AttemptStore,
        fence: Fence,
        blobs: Blobs,
        memory: MemoryWatch,
        node: Node,
        limits: Limits,
        new_id: Callable[[], uuid.UUID],
        now: Callable[[], datetime],
    ) -> None:
        self._attempt = attempt
        self._fence = fence
        self._blobs = blobs
        self._memory = memory
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
        with LeaseKeeper(
            attempt=self._attempt,
            lease_seconds=self._limits.lease,
            renew_seconds=self._limits.lease_renew,
            at_most=limit + self._limits.database_grace + _CLEAN_UP_SECONDS,
        ) as lease:
            started = StepStarted(
                step=call.step, attempt=self._fence.attempt, node=self._node.name, node_id=self._node.id
            )
            self._surely(lambda: self._attempt.start(started, metadata=self._metadata))
            halt = Halt(lease=lease, time_limit=limit, cancel_grace=self._limits.cancel_grace)
            outcome = Outcome(self._run_on_gpu(call, halt)) if call.items else Outcome()
            self._metadata["holds_gpu"] = self._undead is not None
            self._surely(lambda: self._attempt.report(outcome, metadata=self._metadata))
        if self._undead is not None:
            # The step is over, and the dispatcher knows. The task is not: Ray gives its GPU to nobody while it lasts.
            self._undead.await_death()
        return outcome

    def _surely(self, write: Callable[[], _Result]) -> _Result:
        """What must not be lost to a short absence of the database."""
        return outlast(write, may_wait=for_seconds(self._limits.database_grace))

    def _run_on_gpu(self, call: StepCall, halt: Halt) -> Failure | None:
        try:
            end_abandoned()
            with gpu_lock(
                self._node.locks_folder, self._memory.gpu_uuid, timeout=self._limits.stall, check=halt.check_idle
            ) as descriptor:
                self._attempt.record(self._memory.before())
                halt.check_idle()
                try:
                    return self._run_runner(call, halt, inherited=() if descriptor is None else (descriptor,))
                finally:
                    self._record_memory_after()
        except (StepError, Unavailable) as error:
            return _failure_of(error)

    def _record_memory_after(self) -> None:
        for event in self._memory.after():
            try:
                self._attempt.record(event)
            except DatabaseUnavailable:
                # It must not stand in the way of how the step ended.
                log.warning("a memory reading could not be written: the database is away")
        self._metadata["memory"] = self._memory.figures()

    def _time_limit(self, call: StepCall) -> float:
        """Seconds: the job's own, or what such a step may take."""
        return float(call.options.get("step_timeout") or self._limits.step + self._limits.step_item * len(call.items))

    def _run_runner(self, call: StepCall, halt: Halt, *, inherited: tuple[int, ...]) -> Failure | None:
        prepare = self._prepare(call)
        with (
            ImageSaver(
                attempt=self._attempt, blobs=self._blobs, check=halt.check, new_id=self._new_id, now=self._now
            ) as saver,
            RunnerProcess(
                environment=self._node.environment,
                inherited=inherited,
                stop_grace=STOP_GRACE,
                command=self._node.runner,
                on_undead=self._note_undead,
            ) as runner,
        ):
            self._metadata["runner_pid"] = runner.pid
            drawing = Drawing(
                channel=runner.channel,
                attempt=self._attempt,
                saver=saver,
                origin=lambda ready: self._origin(call, ready),
                call=call,
                halt=halt,
                has_ended=lambda: runner.has_ended,
                stall_timeout=self._limits.stall,
                draw_seed=secrets.randbelow,
            )
            try:
                last = drawing.run(prepare)
            except (ChannelClosed, FrameError) as error:
                raise self._crash(runner, error) from error
            except (RunnerStalled, RunnerTimeout) as error:
                runner.stop(STOP_GRACE)
                self._record_output(error.message, runner)
                raise
            self._memory.note_peak(last.peak_memory)
            runner.wait(LEAVE_SECONDS)
        return self._failed(last, runner, halt) if isinstance(last, StepFailed) else None

    def _note_undead(self, runner: RunnerProcess) -> None:
        self._undead = runner

    def _prepare(self, call: StepCall) -> PrepareStep:
        model = call.model
        if model is None or model.local_path is None or not Path(model.local_path).is_dir():
            raise ModelCorrupt(
                "The model's files are not on this node.", details={"node": self._node.name, "node_id": self._node.id}
            )
        return PrepareStep(
            step=call.step,
            model_kind=model.kind,
            model_path=model.local_path,
            device=self._memory.torch_device,
            params=call.params,
        )

    def _origin(self, call: StepCall, ready: Ready) -> Origin:
        self._metadata["versions"] = ready.versions
        return Origin(
            job_id=self._fence.job_id,
            attempt=self._fence.attempt,
            call=call,
            versions=ready.versions,
            device_name=ready.device_name,
        )

    def _failed(self, last: StepFailed, runner: RunnerProcess, halt: Halt) -> Failure:
        failure = reported_failure(last, was_told_to_stop=halt.must_stop)
        if failure.code == DreamForgeError.code:
            self._record_output(failure.message, runner)
        return failure

    def _record_output(self, message: str, runner: RunnerProcess) -> None:
        try:
            self._attempt.record(RunnerWarning(message=message, details={"output": runner.output_tail()}))
        except DatabaseUnavailable:
            # It must not stand in the way of how the step ended.
            log.warning("a runner's output could not be written: the database is away")

    def _crash(self, runner: RunnerProcess, error: Exception) -> RunnerCrashed:
        code = runner.stop(STOP_GRACE)
        log.warning("the runner crashed", extra={"exit_code": code, "step_id": str(self._fence.step_id)})
        self._record_output("The runner ended without a report.", runner)
        details: dict[str, Any] = {"exit_code": code}
        if isinstance(error, FrameError):
            details["protocol"] = str(error)
        return RunnerCrashed(details=details)


def _failure_of(error: DreamForgeError) -> Failure:
    return Failure(error.code, error.message, error.details, list(error.suggestions))
