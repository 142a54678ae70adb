"""Every setting of the API reaches the replica that is deployed."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from deployments import api_replica
from dreamforge import telemetry
from dreamforge.api.hosts import names_of_this_machine
from dreamforge.api.state import ApiRules, ApiState
from dreamforge.api.tail import StreamRules
from dreamforge.settings import inherited_environment

# No two values are the same, and none is a default: a setting that takes another's place is seen.
_VARIABLES = {
    "DREAMFORGE_DATABASE_URL": "postgresql://painter:secret@database.internal:5433/images",
    "DREAMFORGE_REDIS_URL": "redis://:secret@queue.internal:6380/3",
    "DREAMFORGE_S3_PUBLIC_ENDPOINT": "https://images.example.org:9443",
    "DREAMFORGE_S3_ACCESS_KEY": "access",
    "DREAMFORGE_S3_SECRET_KEY": "secret",
    "DREAMFORGE_S3_BUCKET": "gallery",
    "DREAMFORGE_S3_REGION": "eu-north-1",
    "DREAMFORGE_REDIS_OUTAGE": "reject",
    "DREAMFORGE_MAX_BODY": "2001",
    "DREAMFORGE_PRESIGN_TTL": "2002",
    "DREAMFORGE_IDEMPOTENCY_TTL": "2003",
    "DREAMFORGE_HEARTBEAT_SECONDS": "2.5",
    "DREAMFORGE_STREAM_POLL_SECONDS": "1.25",
    "DREAMFORGE_STREAM_IDLE_SECONDS": "1.5",
    "DREAMFORGE_STREAM_KEEP_ALIVE_SECONDS": "11",
    "DREAMFORGE_STREAM_STALL_SECONDS": "12",
    "DREAMFORGE_HOST": "0.0.0.0",  # noqa: S104 - only text here - a value that is compared
    "DREAMFORGE_ALLOWED_HOSTS": "forge.example.org, *.forge.example.net",
}


class _Store(BaseHTTPRequestHandler):
    """Says yes to everything, and keeps what it was asked."""

    asked: ClassVar[list[tuple[str, str]]] = []

    def do_HEAD(self) -> None:
        self.asked.append((self.path, self.headers["Authorization"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def store() -> Iterator[str]:
    """The internal address of an object store; ``_Store.asked`` tells what it was asked."""
    _Store.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Store) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def _built(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> ApiState:
    for name in inherited_environment():
        if name.startswith("DREAMFORGE_"):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # The tests' own logs stay as they are.
    monkeypatch.setattr(telemetry, "install", lambda: None)
    return api_replica.build_app(database_connections=7).state.api


def test_every_setting_is_where_it_belongs(monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    state = _built(monkeypatch, {**_VARIABLES, "DREAMFORGE_S3_ENDPOINT": store})
    assert state.rules == ApiRules(
        redis_outage="reject",
        max_body=2001,
        presign_ttl=2002,
        idempotency_ttl=2003,
        heartbeat_seconds=2.5,
        server_adds_request_id=True,
        allowed_hosts=(*names_of_this_machine("0.0.0.0"), "forge.example.org", "*.forge.example.net"),  # noqa: S104 - nothing is bound to it here
        streams=StreamRules(poll=1.25, idle=1.5, keep_alive=11, stall=12),
    )
    assert state.tail.rules == state.rules.streams
    url = state.engine.url
    assert (url.host, url.port, url.database, url.username) == ("database.internal", 5433, "images", "painter")
    assert state.engine.pool.size() == 7  # type: ignore[attr-defined] - of a pool that has a size


def test_the_store_is_asked_at_one_address_and_signed_for_at_the_other(
    monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    blobs = _built(monkeypatch, {**_VARIABLES, "DREAMFORGE_S3_ENDPOINT": store}).blobs
    signed = urlsplit(blobs.presign("key", ttl=60, content_type="image/png", filename="x.png"))
    assert (signed.scheme, signed.netloc, signed.path) == ("https", "images.example.org:9443", "/gallery/key")
    credential = parse_qs(signed.query)["X-Amz-Credential"][0]
    assert (credential.partition("/")[0], "/eu-north-1/s3/" in credential) == ("access", True)
    blobs.ping()
    ((path, authorization),) = _Store.asked
    assert path == "/gallery"
    assert "Credential=access/" in authorization
    assert "/eu-north-1/s3/" in authorization


def test_without_a_public_address_urls_are_signed_for_the_only_one(monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    variables = {name: value for name, value in _VARIABLES.items() if name != "DREAMFORGE_S3_PUBLIC_ENDPOINT"}
    blobs = _built(monkeypatch, {**variables, "DREAMFORGE_S3_ENDPOINT": store}).blobs
    assert blobs.presign("key", ttl=60, content_type="image/png", filename="x.png").startswith(f"{store}/gallery/key?")


def test_what_is_not_set_is_as_it_is_promised(monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    needed = ("DATABASE_URL", "REDIS_URL", "S3_ACCESS_KEY", "S3_SECRET_KEY")
    variables = {f"DREAMFORGE_{name}": _VARIABLES[f"DREAMFORGE_{name}"] for name in needed}
    rules = _built(monkeypatch, {**variables, "DREAMFORGE_S3_ENDPOINT": store}).rules
    assert (rules.max_body, rules.presign_ttl, rules.idempotency_ttl) == (1_048_576, 3600, 86_400)
    assert (rules.redis_outage, rules.streams.keep_alive) == ("accept", 15.0)
