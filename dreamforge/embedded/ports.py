"""Ports on loopback."""

import errno
import random
import socket

from dreamforge.embedded.trouble import StackError

LOOPBACK = "127.0.0.1"

# Below the ports that Linux gives to outgoing connections (32768 up) and that Serve gives to replicas (30000 up): what
# is free now is not taken by one of them before its server binds it.
_RANGE = range(20_000, 30_000)
_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on now, and that this process has not been given before."""
    for port in random.sample(_RANGE, len(_RANGE)):
        if port not in _given and _is_free(port):
            _given.add(port)
            return port
    raise StackError(f"No port from {_RANGE.start} to {_RANGE.stop - 1} is free.")


def require_free(port: int, *, what: str, setting: str, host: str = LOOPBACK) -> None:
    """Raise ``StackError`` when somebody listens on ``port``."""
    try:
        _bind(host, port)
    except OSError as error:
        if error.errno == errno.EACCES:
            raise StackError(
                f"Port {port}, for {what}, is not for this user to use. Set {setting} to one above 1023."
            ) from error
        raise StackError(
            f"Port {port}, for {what}, is taken ({error.strerror}). Set {setting} to another one."
        ) from error


def _is_free(port: int) -> bool:
    try:
        _bind(LOOPBACK, port)
    except OSError:
        return False
    return True


def _bind(host: str, port: int) -> None:
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
