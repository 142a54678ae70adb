"""A relay that counts what a server sends, and lets no more through than it is told."""

import contextlib
import socket
import threading
from collections.abc import Generator

from tests.relay import Relay

_CHUNK = 16 * 1024


class MeteredRelay(Relay):
    """``passed``: bytes that the server has sent to its clients, in all."""

    def __init__(self, *, target: tuple[str, int]) -> None:
        super().__init__(target=target)
        self.passed = 0
        self._most: int | None = None
        self._counting = threading.Condition()

    @contextlib.contextmanager
    def letting_through(self, most: int) -> Generator[None]:
        """In the block so many bytes pass over each connection, and a server that sends more waits."""
        self._limit(most)
        try:
            yield
        finally:
            self._limit(None)

    def _limit(self, most: int | None) -> None:
        with self._counting:
            self._most = most
            self._counting.notify_all()

    def _pass_on(self, one: socket.socket, other: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        if one is pair[0]:
            super()._pass_on(one, other, pair)
            return
        own = 0
        with contextlib.suppress(OSError):
            while data := one.recv(_CHUNK):
                with self._counting:
                    self._counting.wait_for(lambda: self._most is None or own < self._most)  # noqa: B023 - called at once
                    self.passed += len(data)
                own += len(data)
                other.sendall(data)
        self._end(pair)
