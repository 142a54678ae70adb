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
    """One end of the conversation. Many threads may send; one receives.

    ``send_timeout`` is how many seconds the other side may take to read what is sent; None: as many as it likes.
    """

    def __init__(self, sock: socket.socket, *, send_timeout: float | None = None) -> None:
        self._socket = sock
        self._send_timeout = send_timeout
        self._sending = threading.Lock()
        self._buffer = bytearray()
        self._awaited: tuple[int, int] | None = None

    def send(self, message: Message) -> None:
        """Send one frame, whole. Raises ``ChannelClosed`` when nobody is there, or nobody reads."""
        frame = memoryview(encode(message))
        deadline = None if self._send_timeout is None else time.monotonic() + self._send_timeout
        with self._sending:
            while frame:
                frame = frame[self._send_some(frame, deadline) :]

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

    def has_news(self) -> bool:
        """True when something was sent that was not received yet, were it the end of the stream."""
        return bool(self._buffer or select.select([self._socket], [], [], 0)[0])

    def close(self) -> None:
        """Close this end; the other side's next receive raises ``ChannelClosed``."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send_some(self, data: memoryview, deadline: float | None) -> int:
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            # Not settimeout(): a socket's time limit would also hit a thread that is receiving.
            if not select.select([], [self._socket], [], remaining)[1]:
                raise ChannelClosed("nobody reads what is sent")
            return self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except (OSError, ValueError) as error:
            raise ChannelClosed from error

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
