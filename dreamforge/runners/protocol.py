"""What a runner is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from dreamforge.jobs.frames import BeginItems, ItemDrawn, Message, PrepareStep


class Runner(ABC):
    """Draws the items of one step, batch after batch, in one process.

    The process calls ``prepare`` once, ``run_step`` for each batch, and ``cleanup`` at the end. Errors are raised as
    ``dreamforge.errors`` or as torch's own; the process turns them into a report.
    """

    def __init__(self, *, emit: Callable[[Message], None]) -> None:
        self._emit = emit

    def emit_event(self, message: Message) -> None:
        """Send progress or a log line to the supervisor."""
        self._emit(message)

    @abstractmethod
    def prepare(self, call: PrepareStep) -> str:
        """Load the model; the element type that it computes in, `float16`.

        Raises ``ModelCorrupt`` when its files are not what they should be.
        """

    @abstractmethod
    def run_step(self, items: BeginItems) -> Iterator[ItemDrawn]:
        """Draw some items together, each given as soon as it is there, in their order.

        The same call and credit give the same pixels, whatever was drawn before.
        """

    @abstractmethod
    def cleanup(self) -> int | None:
        """Let everything go; the peak of allocated device memory in bytes, None on the CPU."""
