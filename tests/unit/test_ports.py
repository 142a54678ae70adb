"""Ports for servers on loopback."""

import socket
import subprocess
import sys

import pytest

from dreamforge.embedded import ports
from dreamforge.embedded.ports import LOOPBACK, free_port, require_free
from dreamforge.embedded.trouble import StackError


def test_no_port_is_given_twice_though_nobody_listens_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_RANGE", range(20_000, 20_100))
    given: set[int] = set()
    monkeypatch.setattr(ports, "_given", given)
    asked = [free_port() for _ in range(50)]
    assert set(asked) == given
    assert len(given) == len(asked)
    given.update(range(20_000, 20_100))
    with pytest.raises(StackError, match="No port from 20000 to 20099 is free"):
        free_port()


def test_a_port_with_a_listener_is_neither_given_nor_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, free_port()))
        listener.listen()
        port = listener.getsockname()[1]
        monkeypatch.setattr(ports, "_RANGE", range(port, port + 1))
        monkeypatch.setattr(ports, "_given", set())
        with pytest.raises(StackError):
            free_port()
        with pytest.raises(StackError, match=f"Port {port}, for the test, is taken .* Set THAT to another one"):
            require_free(port, what="the test", setting="THAT")
    assert free_port() == port
    require_free(port, what="the test", setting="THAT")


def test_a_port_that_was_given_to_another_process_a_moment_ago_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = "from dreamforge.embedded import ports; print(ports.free_port())"
    other = int(subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout)
    monkeypatch.setattr(ports, "_RANGE", range(other, other + 1))
    monkeypatch.setattr(ports, "_given", set())
    with pytest.raises(StackError):
        free_port()
    monkeypatch.setattr(ports, "_RESERVED_SECONDS", 0.0)
    assert free_port() == other
