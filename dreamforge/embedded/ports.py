"""Ports on loopback."""

import contextlib
import errno
import os
import random
import socket
import tempfile
import time
from pathlib import Path

from dreamforge.embedded.trouble import StackError

LOOPBACK = "127.0.0.1"

# Below the ports that Linux gives to outgoing connections (32768 up) and that Serve gives to replicas (30000 up): what
# is free now is not taken by one of them before its server binds it.
_RANGE = range(20_000, 30_000)
_given: set[int] = set()
_RESERVED_SECONDS = 300.0
"""How long a server may take to bind a port that was found for it."""


def free_port() -> int:
    """A port that nobody listens on now, that this process has not been given before, and no other one just now."""
    for port in random.sample(_RANGE, len(_RANGE)):
        if port not in _given and _is_free(port) and _reserve(port):
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


def _reserve(port: int) -> bool:
    """Tell this user's other processes that it is taken; False when one of them was first."""
    note = Path(tempfile.gettempdir()) / f"dreamforge-ports-{os.getuid()}" / str(port)
    # Without such a folder there is the chance that two find the same one.
    with contextlib.suppress(OSError):
        note.parent.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            age = time.time() - note.stat().st_mtime
            if age < _RESERVED_SECONDS and note.read_text() != str(os.getpid()):
                return False
        note.write_text(str(os.getpid()))
    return True


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
