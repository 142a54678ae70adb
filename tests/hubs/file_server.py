"""A server of files over HTTP/1.1 on loopback, which does everything wrong that servers of models have been seen to do.

    with FileServer() as server:
        file = server.add("model.safetensors", data)
        file.then(Fault(cut_after=1000), Fault(status=503, headers={"Retry-After": "1"}))   # the next two requests
        file.fault = Fault(ignores_range=True)                                              # all others
        download(file.url)
        assert file.bytes_sent == len(data) + 1000

`python -m tests.hubs.file_server FOLDER` serves a folder from a process of its own and prints its URL: for benchmarks.
"""

import contextlib
import email.utils
import gzip
import os
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.hubs.hosting import NO_FAULT, Asked, Fault, HostedFile

_CHUNK = 64 * 1024
_LOOK_SECONDS = 0.02


class FileServer:
    """The server; a thread for each connection.

    ``refuses_authorization``: 400 to any Authorization header, as Civitai's storage does. ``tls``: speaks https by it.
    """

    def __init__(
        self, *, refuses_authorization: bool = False, tls: ssl.SSLContext | None = None, folder: Path | None = None
    ) -> None:
        self.files: dict[str, HostedFile] = {}
        self.requests: list[Asked] = []
        self.refuses_authorization = refuses_authorization
        self.folder = folder
        self.tickets: int | None = None
        """What addresses carry once some have expired."""
        self.ending = threading.Event()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"home": self}))
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._scheme = "https" if tls else "http"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_LOOK_SECONDS,), daemon=True)

    @property
    def port(self) -> int:
        """Its port on 127.0.0.1."""
        return self._server.server_address[1]

    @property
    def root(self) -> str:
        """Its URL, without a slash at the end."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def add(self, path: str, body: bytes | Path) -> HostedFile:
        """Serve a file from now on."""
        file = self.files[path] = HostedFile(path, body, locate=self.url, asked=self.requests)
        return file

    def url(self, path: str) -> str:
        """Where a file is now."""
        ticket = "" if self.tickets is None else f"?ticket={self.tickets}"
        return f"{self.root}/{quote(path)}{ticket}"

    def expire(self) -> None:
        """From now on the addresses that were given so far are answered 403."""
        self.tickets = (self.tickets or 0) + 1

    def wait_for_bytes(self, count: int, *, seconds: float = 30.0) -> None:
        """Return once so many bytes of bodies have left, of answers that have ended."""
        deadline = time.monotonic() + seconds
        while sum(asked.sent for asked in list(self.requests)) < count:
            assert time.monotonic() < deadline, f"{count} bytes were not asked for"
            time.sleep(_LOOK_SECONDS / 2)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._server.cut_all()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type["_Handler"]) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is none of the tests' business."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def cut_all(self) -> None:
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class _CutError(ConnectionError):
    """The answer ends here."""


class _Handler(BaseHTTPRequestHandler):
    home: FileServer
    protocol_version = "HTTP/1.1"
    wbufsize = _CHUNK

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        """As Civitai's: 401 whatever the token."""
        self._note(401, 0)
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_CONNECT(self) -> None:
        """As a proxy that lets nobody through."""
        self._note(403, 0)
        self.send_error(403)

    def do_GET(self) -> None:
        self._sent = 0
        self._status = 0
        parts = urlsplit(self.path)
        try:
            self._answer(unquote(parts.path).lstrip("/"), parts.query)
        except OSError:
            self.close_connection = True
        finally:
            self._note(self._status, self._sent)

    def _answer(self, path: str, query: str) -> None:
        home = self.home
        file = home.files.get(path)
        if file is None and home.folder is not None and (home.folder / path).is_file():
            file = home.add(path, home.folder / path)
        ticket = parse_qs(query).get("ticket", [""])[0]
        if home.refuses_authorization and "Authorization" in self.headers:
            self._say(Fault(status=400, body=b"<Error><Code>InvalidArgument</Code></Error>"))
        elif home.tickets is not None and ticket != str(home.tickets):
            self._say(Fault(status=403, body=b"<Error><Code>AccessDenied</Code></Error>"))
        elif file is None:
            self._say(Fault(status=404, body=b"Not found"))
        else:
            fault = file.next_fault()
            if fault.holds_answer:
                self._stay()
            if fault.endless_head:
                self._begin_without_end()
            if fault.status is not None:
                self._say(fault)
            else:
                self._serve(file, fault)

    def _say(self, fault: Fault) -> None:
        assert fault.status is not None
        self._begin(fault.status, {"Content-Length": str(len(fault.body) + fault.adds_to_length), **fault.headers})
        self._send(fault.body, fault)

    def _serve(self, file: HostedFile, fault: Fault) -> None:
        size, etag = file.size, file.etag
        date = email.utils.formatdate(file.last_modified, usegmt=True) if file.last_modified else None
        marks = {"Content-Type": file.content_type, "Accept-Ranges": "bytes"}
        marks |= {"ETag": etag} if etag else {}
        marks |= {"Last-Modified": date} if date else {}
        wanted = None if fault.ignores_range or fault.gzips else _range(self.headers.get("Range"), size)
        condition = self.headers.get("If-Range")
        if condition is not None and condition not in (etag, date):
            wanted = None
        if wanted == ():
            self._begin(416, {**marks, "Content-Range": f"bytes */{size}", "Content-Length": "0", **fault.headers})
            self.wfile.flush()
            return
        begin, end = wanted or (0, size)
        status = 200 if wanted is None or fault.says_200 else 206
        if wanted is not None:
            begin, end = begin + fault.range_shift, end + fault.range_shift
            marks["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        if fault.gzips or fault.has_no_length:
            self._serve_unmeasured(file, fault, marks, begin, end, status)
            return
        marks["Content-Length"] = str(end - begin + fault.adds_to_length)
        self._begin(status, {**marks, **fault.headers})
        if fault == NO_FAULT and isinstance(file.body, Path):
            self._send_file(file.body, begin, end)
            return
        for place in range(begin, end, _CHUNK):
            self._send(_flipped(file.cut(place, min(end, place + _CHUNK)), place, fault.flips), fault)
        if fault.adds_to_length > 0 or fault.range_shift:
            raise _CutError

    def _serve_unmeasured(
        self, file: HostedFile, fault: Fault, marks: dict[str, str], begin: int, end: int, status: int
    ) -> None:
        """A body in chunks, packed where the fault is that."""
        data = _flipped(file.cut(begin, end), begin, fault.flips)
        if fault.gzips:
            data, marks["Content-Encoding"] = gzip.compress(data), "gzip"
        self._begin(status, {**marks, "Transfer-Encoding": "chunked", **fault.headers})
        for place in range(0, len(data), _CHUNK):
            piece = data[place : place + _CHUNK]
            self.wfile.write(b"%x\r\n" % len(piece))
            self._send(piece, fault)
            self.wfile.write(b"\r\n")
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self._status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _begin_without_end(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not self.home.ending.wait(_LOOK_SECONDS):
            self.wfile.write(b"x")
            self.wfile.flush()
        raise _CutError

    def _send(self, data: bytes, fault: Fault) -> None:
        """What of the data may leave, and then what the fault is."""
        step = fault.drip_bytes if fault.drip else _CHUNK
        for place in range(0, len(data), step):
            piece = data[place : place + step]
            stop = min((at for at in (fault.cut_after, fault.silent_after) if at is not None), default=None)
            left = len(piece) if stop is None else max(0, stop - self._sent)
            self.wfile.write(piece[:left])
            self._sent += len(piece[:left])
            if fault.drip or left < len(piece):
                self.wfile.flush()
            if left < len(piece):
                self._break_off(fault)
            if fault.drip and self.home.ending.wait(fault.drip):
                raise _CutError
        self.wfile.flush()

    def _break_off(self, fault: Fault) -> None:
        if fault.silent_after is not None:
            self._stay()
        if fault.resets:
            # To linger for no time at all is to reset: see socket(7).
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        raise _CutError

    def _stay(self) -> None:
        """Say nothing more until the client has gone, or the server goes."""
        self.connection.settimeout(_LOOK_SECONDS)
        while not self.home.ending.is_set():
            with contextlib.suppress(TimeoutError, ssl.SSLError):
                if not self.connection.recv(1):
                    break
        raise _CutError

    def _send_file(self, path: Path, begin: int, end: int) -> None:
        self.wfile.flush()
        with path.open("rb") as file:
            if isinstance(self.connection, ssl.SSLSocket):
                file.seek(begin)
                self.connection.sendall(file.read(end - begin))
                self._sent += end - begin
                return
            while begin < end:
                sent = os.sendfile(self.connection.fileno(), file.fileno(), begin, min(end - begin, 1 << 24))
                self._sent, begin = self._sent + sent, begin + sent

    def _note(self, status: int, sent: int) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path).lstrip("/")
        self.home.requests.append(Asked(self.command, path, parts.query, dict(self.headers), status, sent))


def _range(text: str | None, size: int) -> tuple[int, int] | tuple[()] | None:
    """Begin and end of a range; nothing of one that the file does not have; None when there is none."""
    if text is None or not text.startswith("bytes=") or "," in text:
        return None
    first, _, last = text.removeprefix("bytes=").partition("-")
    begin = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    return (begin, end) if begin < end else ()


def _flipped(data: bytes, place: int, flips: int | None) -> bytes:
    if flips is None or not place <= flips < place + len(data):
        return data
    at = flips - place
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def main() -> None:
    """Serve a folder until the input ends."""
    with FileServer(folder=Path(sys.argv[1])) as server:
        sys.stdout.write(f"{server.root}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
