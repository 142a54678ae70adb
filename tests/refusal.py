"""`dreamforge up` where it must refuse: what it says then, and what it must never say."""

import http.server
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from tests.running_stack import RunningStack

SECRET = "s3cr3t"
"""A password for every user of the tests: it must never be shown."""
_MOST_SECONDS = 30.0
"""For a machine that is busy. Left to themselves, the clients wait for one to three minutes."""


class Refusals:
    """Runs `dreamforge up` over a folder, with servers that it cannot use."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def sentence(self, begins: str, **variables: str) -> str:
        """The one sentence with which it refused, which must come at once and before anything was started."""
        stack = RunningStack(data_dir=self._data_dir, **variables)
        began = time.monotonic()
        stack.start()
        try:
            assert stack.wait_for_end(seconds=60) == 1, stack.said()
            assert time.monotonic() - began < _MOST_SECONDS
            self._assert_nothing_was_started(stack)
        finally:
            stack.kill()
        for text in (stack.said(), *(path.read_text() for path in self._data_dir.glob("logs/*"))):
            assert "Traceback" not in text
            assert not [secret for secret in _secrets(variables) if secret in text]
        said = stack.said().strip().splitlines()[-1]
        assert said.startswith(f"✗ {begins}"), stack.said()
        return said

    def _assert_nothing_was_started(self, stack: RunningStack) -> None:
        # Whatever is started has a log.
        assert {path.name for path in self._data_dir.glob("logs/*")} <= {"up.log"}
        assert not (self._data_dir / "stack.json").exists()
        assert not stack.ray_folder.exists()


def _secrets(variables: dict[str, str]) -> set[str]:
    found = {SECRET}
    for name, value in variables.items():
        if name.endswith(("_SECRET_KEY", "_TOKEN")):
            found.add(value)
        elif value.count("@") == 1:
            found.add(urlsplit(value).password or SECRET)
    return found


def store_variables(endpoint: str, *, access_key: str = "painter", secret_key: str = SECRET) -> dict[str, str]:
    """The settings of an object store."""
    return {
        "DREAMFORGE_S3_ENDPOINT": endpoint,
        "DREAMFORGE_S3_ACCESS_KEY": access_key,
        "DREAMFORGE_S3_SECRET_KEY": secret_key,
    }


class _Page(http.server.BaseHTTPRequestHandler):
    status: ClassVar[int] = 200

    def answer(self) -> None:
        """The same page, whatever one asks for."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        page = b"<!doctype html><html><body>It works!</body></html>"
        self.send_response(self.status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def web_site(*, status: int) -> Generator[str]:
    """A web server that answers every request with this status and a page. Its URL."""
    methods = {f"do_{method}": _Page.answer for method in ("GET", "HEAD", "PUT", "POST", "DELETE")}
    page = type("Page", (_Page,), {"status": status, **methods})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
