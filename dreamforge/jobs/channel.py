"""Frames over a connected stream socket, blocking, with a time limit for receiving."""

import select
import socket
import threading
import time
from typing import Self

from dreamforge.jobs.frames import PREFIX, Message, decode, encode, parse_prefix


class ChannelClosed(Exception):
    """The other side has gone."""


class FrameChannel:
    """One end of the conversation. Many threads may send; one receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()
        self._buffer = bytearray()
        self._awaited: tuple[int, int] | None = None

    def send(self, message: Message) -> None:
        """Send one frame, whole. Raises ``ChannelClosed`` when nobody is there."""
        frame = encode(message)
        with self._sending:
            try:
                self._socket.sendall(frame)
            except OSError as error:
                raise ChannelClosed from error

    def receive(self, *, timeout: float | None = None) -> Message:
        """The next message.

        Raises ``TimeoutError`` when none is complete within ``timeout`` seconds (what has come is kept for the next
        call), ``ChannelClosed`` at the end of the stream, and ``FrameError`` for anything that is no frame.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._awaited is None:
            self._fill(PREFIX.size, deadline)
            self._awaited = parse_prefix(self._take(PREFIX.size))
        header_length, payload_length = self._awaited
        self._fill(header_length + payload_length, deadline)
        self._awaited = None
        return decode(self._take(header_length), self._take(payload_length))

    def close(self) -> None:
        """Close this end; the other side's next receive raises ``ChannelClosed``."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _fill(self, size: int, deadline: float | None) -> None:
        while len(self._buffer) < size:
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                raise TimeoutError
            # Not settimeout(): a socket's time limit would also hit a thread that is sending.
            try:
                if not select.select([self._socket], [], [], remaining)[0]:
                    raise TimeoutError
                chunk = self._socket.recv(max(65536, size - len(self._buffer)))
            except TimeoutError:
                raise
            except (OSError, ValueError) as error:
                raise ChannelClosed from error
            if not chunk:
                raise ChannelClosed
            self._buffer += chunk
