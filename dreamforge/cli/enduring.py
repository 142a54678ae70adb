"""Standard output that may be lost: whoever runs the stack goes on, and stops in order, without a reader."""

import os
import sys
from typing import Any, TextIO


class Enduring:
    """A stream whose reader may go away, as a closed terminal or a pipe's end does. What is written then is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if anybody reads."""
        try:
            return self._stream.write(text)
        except OSError:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        """Hand over what was written, if anybody reads."""
        try:
            self._stream.flush()
        except OSError:
            self._let_go()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _let_go(self) -> None:
        # What is still buffered must go somewhere: the interpreter flushes at its end, and would fail then.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def enduring_stdout() -> Any:
    """Standard output, for a console."""
    return Enduring(sys.stdout)
