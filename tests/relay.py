"""A TCP relay in front of a real server, to take the server away from one client and leave it to all others."""

import contextlib
import socket
import threading
from collections.abc import Generator
from typing import Self
from urllib.parse import urlsplit, urlunsplit

_CHUNK = 65536
_LOOK_SECONDS = 0.05


class Relay:
    """Listens on loopback and passes bytes on to ``target``, until it is told otherwise."""

    def __init__(self, *, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._pairs: dict[tuple[socket.socket, socket.socket], int] = {}
        self.cut_off = 0
        """How many connections it has cut off so far."""
        self._lost_answers_to: bytes | None = None
        self._doomed: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._flows = threading.Event()
        self._flows.set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="relay", daemon=True)

    @classmethod
    def before(cls, url: str) -> Self:
        """A relay to the server of a URL."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        return cls(target=(parts.hostname, parts.port))

    def moved(self, url: str) -> str:
        """The URL with the relay in the server's place."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{self.port}"))

    @contextlib.contextmanager
    def refusing(self) -> Generator[None]:
        """In the block nobody listens, and what was connected is cut off: the server has died."""
        with self._lock:
            self._listener.close()
        self._cut()
        try:
            yield
        finally:
            with self._lock:
                self._listener = self._listen(self.port)

    @contextlib.contextmanager
    def leading_to(self, url: str) -> Generator[None]:
        """In the block another server is behind it, and what was connected is cut off."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        before, self._target = self._target, (parts.hostname, parts.port)
        self._cut()
        try:
            yield
        finally:
            self._target = before
            self._cut()

    @contextlib.contextmanager
    def frozen(self) -> Generator[None]:
        """In the block connections are taken and nothing is answered: the server is stopped, or the network is."""
        self._flows.clear()
        try:
            yield
        finally:
            self._flows.set()

    @contextlib.contextmanager
    def losing_answers(self, to: bytes) -> Generator[None]:
        """In the block what is asked with these bytes is done, and whoever has asked is cut off before the answer."""
        self._lost_answers_to = to
        try:
            yield
        finally:
            self._lost_answers_to = None

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._pairs)

    @property
    def sources(self) -> frozenset[int]:
        """The ports from which it speaks to the server, one for each client that is connected."""
        return frozenset(self._pairs.values())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._flows.set()
        self._thread.join()
        self._listener.close()
        self._cut()

    @staticmethod
    def _listen(port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port), backlog=128)
        listener.settimeout(_LOOK_SECONDS)
        return listener

    def _cut(self) -> None:
        pairs = list(self._pairs)
        self.cut_off += len(pairs)
        for pair in pairs:
            self._end(pair)

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        # The threads that wait for the two notice, and the last of them closes.
        for one in pair:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._ended.is_set():
            self._flows.wait()
            try:
                with self._lock:
                    client, _ = self._listener.accept()
                client.settimeout(None)
                server = socket.create_connection(self._target)
            except OSError:
                # Nobody has come, nobody listens, or the server has gone.
                self._ended.wait(_LOOK_SECONDS / 10)
                continue
            pair = (client, server)
            self._pairs[pair] = server.getsockname()[1]
            threading.Thread(target=self._pass_both, args=(pair,), name="relay", daemon=True).start()

    def _pass_both(self, pair: tuple[socket.socket, socket.socket]) -> None:
        client, server = pair
        back = threading.Thread(target=self._pass_on, args=(server, client, pair), name="relay", daemon=True)
        back.start()
        self._pass_on(client, server, pair)
        back.join()
        self._doomed.difference_update(pair)
        for one in pair:
            one.close()
        del self._pairs[pair]

    def _pass_on(self, one: socket.socket, other: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(_CHUNK):
                self._flows.wait()
                if one in self._doomed:
                    self.cut_off += 1
                    break
                if self._lost_answers_to is not None and self._lost_answers_to in data and one is pair[0]:
                    self._doomed.add(other)
                other.sendall(data)
        self._flows.wait()
        self._end(pair)
