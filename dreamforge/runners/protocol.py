"""What a runner is."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from dreamforge.jobs.frames import BeginItem, ItemDrawn, Message, PrepareStep


class Runner(ABC):
    """Draws the items of one step, one after the other, in one process.

    The process calls ``prepare`` once, ``run_step`` for each item, and ``cleanup`` at the end. Errors are raised as
    ``dreamforge.errors`` or as torch's own; the process turns them into a report.
    """

    def __init__(self, *, emit: Callable[[Message], None]) -> None:
        self._emit = emit

    def emit_event(self, message: Message) -> None:
        """Send progress or a log line to the supervisor."""
        self._emit(message)

    @abstractmethod
    def prepare(self, call: PrepareStep) -> None:
        """Load the model. Raises ``ModelCorrupt`` when its files are not what they should be."""

    @abstractmethod
    def run_step(self, item: BeginItem) -> ItemDrawn:
        """Draw one item. The same call and seed give the same pixels, whatever was drawn before."""

    @abstractmethod
    def cleanup(self) -> int | None:
        """Let everything go; the peak of allocated device memory in bytes, None on the CPU."""
