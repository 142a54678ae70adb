"""The runner's entry point: `python -m dreamforge.runners.process FD PARENT_PID`, started by the supervisor."""

import os
import socket
import sys

from dreamforge.jobs.channel import ChannelClosed, FrameChannel
from dreamforge.jobs.frames import FrameError
from dreamforge.runners.confinement import die_with_parent, leave_network

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_ALONE = 2
"""The supervisor has gone."""


def main(descriptor: int, parent: int) -> int:
    """Run one step over the socket ``descriptor``; the exit code."""
    die_with_parent(parent)
    remark = leave_network()
    # Only now: torch starts threads, and a process with threads cannot leave its user namespace.
    from dreamforge.runners.conversation import converse  # noqa: PLC0415 - see above

    channel = FrameChannel(socket.socket(fileno=descriptor))
    try:
        succeeded = converse(channel, remark=remark)
    except ChannelClosed:
        return EXIT_ALONE
    except FrameError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_FAILED
    return EXIT_DONE if succeeded else EXIT_FAILED


if __name__ == "__main__":
    code = main(int(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    # An interpreter that has loaded torch takes a second to shut down, with the GPU still held.
    os._exit(code)
