"""Ports on loopback."""

import socket

from dreamforge.embedded.trouble import StackError

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def require_free(port: int, *, what: str, setting: str, host: str = LOOPBACK) -> None:
    """Raise ``StackError`` when somebody listens on ``port``."""
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StackError(
                f"Port {port}, for {what}, is taken ({error.strerror}). Set {setting} to another one."
            ) from error
