"""One step, from memory reading to memory reading."""

import logging
import os
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
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
from dreamforge.worker.child import RunnerProcess
from dreamforge.worker.drawing import Drawing
from dreamforge.worker.gpu_lock import gpu_lock
from dreamforge.worker.lease import LeaseKeeper
from dreamforge.worker.memory import MemoryWatch
from dreamforge.worker.saving import ImageSaver, Origin

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

STOP_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL for a runner that is to end."""
LEAVE_SECONDS = 10.0
"""Seconds an acknowledged runner may take to leave."""


@dataclass(frozen=True)
class Limits:
    """Times in seconds."""

    lease: float
    lease_renew: float
    step: float
    database_grace: float


@dataclass(frozen=True)
class Node:
    """Where the supervisor runs. ``environment`` is what a runner's is chosen from.

    ``name`` is an address, which several nodes may share; ``id`` is Ray's, None outside of Ray.
    """

    name: str
    locks_folder: Path
    environment: Mapping[str, str]
    id: str | None = None


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
        self._metadata: dict[str, Any] = {"node": node.name, "node_id": node.id, "supervisor_pid": os.getpid()}

    def run(self) -> Outcome:
        """Take over the lease, run, report. A job that is to be cancelled has its runner stopped."""
        call = self._surely(self._attempt.load_call)
        with LeaseKeeper(
            attempt=self._attempt, lease_seconds=self._limits.lease, renew_seconds=self._limits.lease_renew
        ) as lease:
            started = StepStarted(
                step=call.step, attempt=self._fence.attempt, node=self._node.name, node_id=self._node.id
            )
            self._surely(lambda: self._attempt.start(started, metadata=self._metadata))
            outcome = Outcome(self._run_on_gpu(call, lease)) if call.items else Outcome()
            self._surely(lambda: self._attempt.report(outcome, metadata=self._metadata))
            return outcome

    def _surely(self, write: Callable[[], _Result]) -> _Result:
        """What must not be lost to a short absence of the database."""
        return outlast(write, may_wait=for_seconds(self._limits.database_grace))

    def _run_on_gpu(self, call: StepCall, lease: LeaseKeeper) -> Failure | None:
        try:
            with gpu_lock(
                self._node.locks_folder, self._memory.gpu_uuid, timeout=self._limits.step, check=lease.check
            ) as descriptor:
                self._attempt.record(self._memory.before())
                try:
                    return self._run_runner(call, lease, inherited=() if descriptor is None else (descriptor,))
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

    def _run_runner(self, call: StepCall, lease: LeaseKeeper, *, inherited: tuple[int, ...]) -> Failure | None:
        prepare = self._prepare(call)
        check = self._check_of(call, lease)
        with (
            ImageSaver(
                attempt=self._attempt, blobs=self._blobs, check=check, new_id=self._new_id, now=self._now
            ) as saver,
            RunnerProcess(environment=self._node.environment, inherited=inherited, stop_grace=STOP_GRACE) as runner,
        ):
            self._metadata["runner_pid"] = runner.pid
            drawing = Drawing(
                channel=runner.channel,
                attempt=self._attempt,
                saver=saver,
                origin=lambda ready: self._origin(call, ready),
                call=call,
                check=check,
                draw_seed=secrets.randbelow,
            )
            try:
                last = drawing.run(prepare)
            except (ChannelClosed, FrameError) as error:
                raise self._crash(runner, error) from error
            self._memory.note_peak(last.peak_memory)
            runner.wait(LEAVE_SECONDS)
        return self._failed(last, runner) if isinstance(last, StepFailed) else None

    def _check_of(self, call: StepCall, lease: LeaseKeeper) -> Callable[[], None]:
        """What is looked at again and again: is the step still ours to run, and within its time?"""
        deadline = time.monotonic() + float(call.options.get("step_timeout") or self._limits.step)

        def check() -> None:
            lease.check()
            if time.monotonic() >= deadline:
                raise RunnerTimeout

        return check

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

    def _failed(self, last: StepFailed, runner: RunnerProcess) -> Failure:
        if last.code == DreamForgeError.code:
            self._attempt.record(RunnerWarning(message=last.message, details={"output": runner.output_tail()}))
        return Failure(last.code, last.message, last.details, last.suggestions)

    def _crash(self, runner: RunnerProcess, error: Exception) -> RunnerCrashed:
        code = runner.stop(STOP_GRACE)
        output = runner.output_tail()
        log.warning("the runner crashed", extra={"exit_code": code, "step_id": str(self._fence.step_id)})
        self._attempt.record(RunnerWarning(message="The runner ended without a report.", details={"output": output}))
        details: dict[str, Any] = {"exit_code": code}
        if isinstance(error, FrameError):
            details["protocol"] = str(error)
        return RunnerCrashed(details=details)


def _failure_of(error: DreamForgeError) -> Failure:
    return Failure(error.code, error.message, error.details, list(error.suggestions))
