"""Every error the service can give: one shape, one table."""

import asyncio
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from dreamforge import errors
from dreamforge.api.errors import HTTP_ERRORS, STATUS_OF_ERROR, HttpError
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.errors import DreamForgeError
from tests.integration.door import GOOD, JSON, assert_envelope, make_app


def _raise_from_a_route(client: TestClient, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def broken(*_: object) -> None:
        await asyncio.sleep(0)
        raise error

    app: Any = client.app
    monkeypatch.setattr(app.state.api.models, "list", broken)


TABLE = {
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "invalid_request": 422,
    "unknown_model": 422,
    "model_not_installed": 422,
    "model_disabled": 422,
    "model_incompatible": 422,
    "idempotency_key_reused": 422,
    "rate_limited": 429,
    "queue_full": 429,
    "database_unavailable": 503,
    "queue_unavailable": 503,
    "storage_unavailable": 503,
}


def test_the_table_is_whole() -> None:
    assert {error.code: status for error, status in STATUS_OF_ERROR.items()} == TABLE


@pytest.mark.parametrize("kind", STATUS_OF_ERROR, ids=lambda kind: kind.code)
def test_every_error_of_the_domain_has_its_status(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, kind: type[DreamForgeError]
) -> None:
    _raise_from_a_route(client, monkeypatch, kind("Why it is so.", details={"more": 1}))
    response = client.get("/v1/models")
    error = assert_envelope(response, TABLE[kind.code], kind.code)
    assert (error["message"], error["details"]) == ("Why it is so.", {"more": 1})
    waits = response.status_code in {429, 503}
    assert ("Retry-After" in response.headers) is waits
    assert not waits or int(response.headers["Retry-After"]) > 0


@pytest.mark.parametrize("status", HTTP_ERRORS)
def test_every_error_of_http_has_its_code(client: TestClient, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    _raise_from_a_route(client, monkeypatch, HttpError(status, "Why it is so.", details={"header": "Prefer"}))
    error = assert_envelope(client.get("/v1/models"), status, HTTP_ERRORS[status][0])
    assert (error["message"], error["details"]) == ("Why it is so.", {"header": "Prefer"})


@pytest.mark.parametrize("bug", [KeyError("secret"), errors.StepError("secret"), RuntimeError("secret" * 9999)])
def test_a_bug_shows_no_trace(client: TestClient, monkeypatch: pytest.MonkeyPatch, bug: Exception) -> None:
    _raise_from_a_route(client, monkeypatch, bug)
    quiet = TestClient(client.app, raise_server_exceptions=False)
    error = assert_envelope(quiet.get("/v1/models"), 500, "internal")
    assert "secret" not in json.dumps(error)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/jobs", {"GET", "POST"}),
        ("PUT", "/v1/models/tiny", {"GET"}),
        ("POST", "/healthz", {"GET"}),
        ("GET", "/v1/jobs/x/cancel", {"POST"}),
        ("NONSENSE", "/v1/models", {"GET"}),
        ("POST", "/docs/assets/swagger-ui.css", {"GET", "HEAD"}),
        ("NONSENSE", "/docs/assets/nothing", {"GET", "HEAD"}),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(client: TestClient, method: str, path: str, allowed: set[str]) -> None:
    response = client.request(method, path)
    assert_envelope(response, 405, "method_not_allowed")
    assert allowed <= set(response.headers["Allow"].split(", "))
    assert method not in response.headers["Allow"].split(", ")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/v1/nothing", "/v1/jobs/", "/v1/models/a/b", "/docs/assets/x"])
def test_there_is_nothing_at_an_unknown_address(client: TestClient, path: str) -> None:
    assert_envelope(client.get(path), 404, "not_found")


def test_a_body_of_an_error_stays_small_whatever_is_in_it(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = "\U0001f600" * 5000
    for details in ({"errors": [{"path": huge, "message": huge}] * 30}, {"more": huge}, {}):
        _raise_from_a_route(client, monkeypatch, errors.UnknownModel(huge, details=details))
        assert_envelope(client.get("/v1/models"), 422, "unknown_model")


def test_many_mistakes_are_told_as_far_as_they_fit(client: TestClient) -> None:
    body = {**GOOD, **{f"{number}" + "\U0001f600" * 300: 1 for number in range(100)}}
    error = assert_envelope(client.post("/v1/jobs", content=json.dumps(body), headers=JSON), 422, "invalid_request")
    assert len(error["details"]["errors"]) >= 5


def test_an_unknown_model_s_name_is_not_echoed_without_end(client: TestClient) -> None:
    for name in ("x" * 200, "\U0010ffff" * 200, "'\"\\" * 60):
        body = json.dumps({**GOOD, "model_id": name})
        assert_envelope(client.post("/v1/jobs", content=body, headers=JSON), 422, "unknown_model")


@pytest.mark.parametrize("host", ["evil.example.net", "evil.example.net:8700", "", "localhost:x"])
def test_an_unknown_host_name_is_refused(
    database_url: str, redis_url: str, object_store: ObjectStore, host: str
) -> None:
    app = make_app(database_url, redis_url, object_store.blobs(), allowed_hosts=("localhost",))
    with TestClient(app, base_url="http://127.0.0.1:8700") as client:
        refused = client.get("/v1/models", headers={"Host": host})
        error = assert_envelope(refused, 403, "forbidden")
        assert "DREAMFORGE_ALLOWED_HOSTS" in error["message"]
        assert "evil" not in refused.text
        for known in ("localhost:8700", "127.0.0.1", "[::1]:8700", "10.1.2.3"):
            assert client.get("/v1/models", headers={"Host": known}).status_code == 200
        assert client.get("/healthz", headers={"Host": host}).status_code == 200
        for path in ("/readyz", "/metrics", "/docs", "/openapi.json", "/nothing"):
            assert client.get(path, headers={"Host": host}).status_code == 403


def test_the_documentation_needs_no_internet(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "https://" not in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert f'"/docs/assets/{asset}"' in page
        assert client.get(f"/docs/assets/{asset}").status_code == 200
    assert client.get("/openapi.json").json()["info"]["title"] == "Dream Forge"
