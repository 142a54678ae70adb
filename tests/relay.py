"""A TCP relay in front of a real server, to take the server away from one client and leave it to all others."""

import contextlib
import selectors
import socket
import threading
from collections.abc import Generator
from typing import Self
from urllib.parse import urlsplit, urlunsplit

_CHUNK = 65536


class Relay:
    """Listens on loopback and passes bytes on to ``target``, until it is told otherwise."""

    def __init__(self, *, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._flows = threading.Event()
        self._flows.set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    @classmethod
    def before(cls, url: str) -> "Relay":
        """A relay to the server of a URL."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        return cls(target=(parts.hostname, parts.port))

    def moved(self, url: str) -> str:
        """The URL with the relay in the server's place."""
        parts = urlsplit(url)
        return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{self.port}"))

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
    def frozen(self) -> Generator[None]:
        """In the block connections are taken and nothing is answered: the server is stopped, or the network is."""
        self._flows.clear()
        try:
            yield
        finally:
            self._flows.set()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._pairs) // 2

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._flows.set()
        self._thread.join()
        with self._lock:
            self._listener.close()
            self._cut()

    @staticmethod
    def _listen(port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port), backlog=128)
        listener.setblocking(False)
        return listener

    def _cut(self) -> None:
        for one in self._pairs:
            one.close()
        self._pairs.clear()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._flows.wait()
            with self._lock, selectors.DefaultSelector() as ready:
                for one in (self._listener, *self._pairs):
                    if one.fileno() >= 0:
                        ready.register(one, selectors.EVENT_READ)
                chosen = [key.fileobj for key, _ in ready.select(0.01)]
                for one in chosen:
                    assert isinstance(one, socket.socket)
                    if one is self._listener:
                        self._accept()
                    elif one in self._pairs:
                        self._pass_on(one)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # it has gone already
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        client.setblocking(True)
        self._pairs |= {client: server, server: client}

    def _pass_on(self, one: socket.socket) -> None:
        other = self._pairs[one]
        data = b""
        with contextlib.suppress(OSError):
            data = one.recv(_CHUNK)
        try:
            if not data:
                raise OSError("closed")
            other.sendall(data)
        except OSError:
            for end in (one, other):
                self._pairs.pop(end, None)
                end.close()
