"""What a step does on its GPU: alone there, measured before and after, and with less memory if need be."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from dreamforge.errors import DatabaseUnavailable, LeaseLost, OutOfMemory
from dreamforge.jobs.events import StepDegraded
from dreamforge.jobs.memory_ladder import LAST_RUNG, out_of_memory, savings
from dreamforge.jobs.outcome import Failure
from dreamforge.store.step_calls import StepCall, StepItem
from dreamforge.worker.gpu_health import GpuHealth
from dreamforge.worker.halt import Halt
from dreamforge.worker.headroom import fitting_rung
from dreamforge.worker.journal import Journal
from dreamforge.worker.memory import MemoryWatch
from dreamforge.worker.session import Session
from dreamforge.worker.strays import end_abandoned


class Work:
    """One attempt's. ``lock`` holds the GPU and yields the descriptor by which a runner holds it too."""

    def __init__(
        self,
        *,
        session: Session,
        journal: Journal,
        halt: Halt,
        memory: MemoryWatch,
        health: GpuHealth,
        missing_items: Callable[[], tuple[StepItem, ...]],
        lock: Callable[[], AbstractContextManager[int | None]],
    ) -> None:
        self._session = session
        self._journal = journal
        self._halt = halt
        self._memory = memory
        self._health = health
        self._missing_items = missing_items
        self._lock = lock

    def run(self, call: StepCall) -> Failure | None:
        """Have the call's items drawn and stored; what the runner fails with. Raises ``StepError``."""
        end_abandoned()
        with self._lock() as descriptor:
            trouble = self._health.trouble()
            if trouble is not None:
                return trouble
            try:
                return self._climb(call, inherited=() if descriptor is None else (descriptor,))
            finally:
                self._health.note()

    def _climb(self, call: StepCall, *, inherited: tuple[int, ...]) -> Failure | None:
        """Run the step; out of memory, again on a later rung, each time in a process of its own."""
        while True:
            failure, rung = self._try(call, inherited=inherited)
            if failure is None or rung is None:
                return failure
            self._journal.degrade(
                StepDegraded(step=call.step, rung=rung, savings=list(savings(rung)), error=failure.as_json())
            )
            if self._memory.has_leaked:
                # What is left of this process would be missing to the next one: that is another attempt's, elsewhere.
                return self._health.leak()
            call = replace(call, rung=rung, items=self._missing_items())

    def _try(self, call: StepCall, *, inherited: tuple[int, ...]) -> tuple[Failure | None, int | None]:
        """How it went, and the rung to go on with, None for an end."""
        may_degrade = call.options.get("oom_policy") == "degrade"
        before = self._memory.before()
        self._journal.record(before)
        self._halt.check_idle()
        lacking = fitting_rung(call, before, may_degrade=False)
        if isinstance(lacking, Failure):
            fits = fitting_rung(call, before, may_degrade=may_degrade)
            return (fits, None) if isinstance(fits, Failure) else (lacking, fits)
        failure = self._run_measured(call, inherited=inherited)
        if failure is None or failure.code != OutOfMemory.code:
            return failure, None
        if not may_degrade or call.rung == LAST_RUNG:
            return out_of_memory(failure, rung=call.rung, may_degrade=may_degrade), None
        return failure, call.rung + 1

    def _run_measured(self, call: StepCall, *, inherited: tuple[int, ...]) -> Failure | None:
        try:
            return self._session.run(call, inherited=inherited)
        finally:
            # How the memory came back must not stand in the way of how the step ended.
            with contextlib.suppress(DatabaseUnavailable, LeaseLost):
                for event in self._memory.after():
                    self._journal.record(event)
