"""What can go wrong while the stack starts, said in one sentence."""

from pathlib import Path


class StackError(Exception):
    """The stack cannot start, or cannot go on. The message is for a person, and says what to do."""


class AlreadyRunning(StackError):
    """Another stack holds the data folder."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(f"A stack is running over {data_dir} already.")
        self.data_dir = data_dir
