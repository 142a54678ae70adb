"""One runner, from its start to its end: whatever it does, its step gets an answer."""

import contextlib
import logging
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreamforge.errors import (
    DatabaseUnavailable,
    DreamForgeError,
    HostOutOfMemory,
    LeaseLost,
    RunnerCrashed,
    RunnerStalled,
    RunnerTimeout,
    StepError,
)
from dreamforge.jobs.channel import ChannelClosed
from dreamforge.jobs.events import RunnerWarning
from dreamforge.jobs.frames import FrameError, Ready, StepFailed
from dreamforge.jobs.outcome import Failure
from dreamforge.jobs.presets import preset_of
from dreamforge.store.fence import Fence
from dreamforge.store.step_calls import StepCall
from dreamforge.worker.child import RunnerProcess
from dreamforge.worker.drawing import Drawing
from dreamforge.worker.encoding import Origin
from dreamforge.worker.halt import Halt
from dreamforge.worker.host_memory import KillCounts, join, kill_counts, killed_for_memory, memory_limit
from dreamforge.worker.journal import Journal
from dreamforge.worker.memory import MemoryWatch
from dreamforge.worker.model_files import prepare_step
from dreamforge.worker.node import Node
from dreamforge.worker.reports import reported_failure
from dreamforge.worker.saving import ImageSaver

log = logging.getLogger(__name__)

STOP_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL for a runner that is to end."""
LEAVE_SECONDS = 10.0
"""Seconds an acknowledged runner may take to leave."""
_END_SECONDS = 3.0
"""Seconds a process may take to be gone, with what it has on a GPU, once its socket is closed."""


class Session:
    """Starts runners for one attempt.

    ``saver`` makes what saves the images of one; ``metadata`` are the step's; ``on_undead`` is told of one that does
    not die.
    """

    def __init__(
        self,
        *,
        fence: Fence,
        journal: Journal,
        saver: Callable[[], ImageSaver],
        memory: MemoryWatch,
        node: Node,
        halt: Halt,
        stall_timeout: float,
        metadata: dict[str, Any],
        on_undead: Callable[[RunnerProcess], None],
    ) -> None:
        self._fence = fence
        self._journal = journal
        self._saver = saver
        self._memory = memory
        self._node = node
        self._halt = halt
        self._stall_timeout = stall_timeout
        self._metadata = metadata
        self._on_undead = on_undead

    def run(self, call: StepCall, *, inherited: tuple[int, ...]) -> Failure | None:
        """Have a runner draw the call's items; the failure it reports. Raises ``StepError`` for what it does else."""
        prepare = prepare_step(call, device=self._memory.torch_device, node=self._node)
        with (
            self._saver() as saver,
            memory_limit(self._node.step_memory, name=str(self._fence.step_id)) as made,
            RunnerProcess(
                environment=self._node.environment,
                inherited=inherited,
                stop_grace=STOP_GRACE,
                command=self._node.runner,
                on_undead=self._on_undead,
            ) as runner,
        ):
            cgroup = self._limit(runner, made)
            killed_before = kill_counts(cgroup)
            self._metadata["runner_pid"] = runner.pid
            drawing = Drawing(
                channel=runner.channel,
                journal=self._journal,
                saver=saver,
                origin=lambda ready: self._origin(call, ready),
                call=call,
                halt=self._halt,
                has_ended=lambda: runner.has_ended,
                stall_timeout=self._stall_timeout,
                draw_seed=secrets.randbelow,
            )
            try:
                last = drawing.run(prepare)
            except (ChannelClosed, FrameError) as error:
                raise self._crash(runner, error, killed_before, cgroup) from error
            except (RunnerStalled, RunnerTimeout) as error:
                runner.stop(STOP_GRACE)
                self._record_output(error.message, runner)
                raise
            self._memory.note_peak(last.peak_memory)
            runner.wait(LEAVE_SECONDS)
        return self._failed(last, runner) if isinstance(last, StepFailed) else None

    def _origin(self, call: StepCall, ready: Ready) -> Origin:
        preset = preset_of(call.params)
        self._metadata |= {
            "versions": ready.versions,
            "preset": preset.name,
            "preset_version": preset.version,
            "batch_size": call.batch_size,
        }
        return Origin(
            job_id=self._fence.job_id,
            attempt=self._fence.attempt,
            call=call,
            versions=ready.versions,
            device_name=ready.device_name,
        )

    def _failed(self, last: StepFailed, runner: RunnerProcess) -> Failure:
        failure = reported_failure(last, was_told_to_stop=self._halt.must_stop)
        if failure.code == DreamForgeError.code:
            self._record_output(failure.message, runner)
        return failure

    def _limit(self, runner: RunnerProcess, cgroup: Path | None) -> Path | None:
        """The cgroup that the runner is in from now; None where it is not limited."""
        if self._node.step_memory is None:
            return None
        try:
            if cgroup is None:
                raise OSError("no cgroup is ours to make")
            join(cgroup, runner.pid)
        except OSError as error:
            message = f"The runner's memory cannot be limited on this node: {error.strerror or error}."
            self._journal.record(RunnerWarning(message=message, details={"node": self._node.name}))
            return None
        return cgroup

    def _crash(
        self, runner: RunnerProcess, error: Exception, killed_before: KillCounts, cgroup: Path | None
    ) -> StepError:
        # Its end is heard of a moment before it can be collected; a kill of ours would look the same.
        was_killed = runner.wait(_END_SECONDS) == -signal.SIGKILL
        code = runner.stop(STOP_GRACE)
        log.warning("the runner crashed", extra={"exit_code": code, "step_id": str(self._fence.step_id)})
        self._record_output("The runner ended without a report.", runner)
        details: dict[str, Any] = {"exit_code": code}
        counted_by = killed_for_memory(killed_before, kill_counts(cgroup)) if was_killed else None
        if counted_by is not None:
            return HostOutOfMemory(
                details={**details, "counted_by": counted_by, "limit_bytes": self._node.step_memory if cgroup else None}
            )
        if isinstance(error, FrameError):
            details["protocol"] = str(error)
        return RunnerCrashed(details=details)

    def _record_output(self, message: str, runner: RunnerProcess) -> None:
        # It must not stand in the way of how the step ended.
        with contextlib.suppress(DatabaseUnavailable, LeaseLost):
            self._journal.record(RunnerWarning(message=message, details={"output": runner.output_tail()}))
