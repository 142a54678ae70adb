"""`/v1/artifacts`: an image's description, and its bytes by way of the store or of the service."""

import asyncio
import hashlib
import os
import socket
import tracemalloc
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from dreamforge import blobs
from dreamforge.api.app import create_app
from dreamforge.api.state import ApiState
from dreamforge.blobs import Blob
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.store.models import NewModel
from tests.integration.door import GOOD, api_state, assert_envelope, blobs_behind, served
from tests.integration.factories import claimed, draw, finish
from tests.relay import Relay
from tests.service import wait_for
from tests.web import web

LARGE = bytes(range(256)) * 4096 * 32
"""32 MiB: more than sockets hold."""
_PRESIGN_TTL = 1234


@pytest.fixture
def relay(object_store: ObjectStore) -> Iterator[Relay]:
    """Stands between the service and its store."""
    with Relay.before(object_store.endpoint) as relay:
        yield relay


@pytest.fixture
def state(database_url: str, redis_url: str, object_store: ObjectStore, relay: Relay) -> ApiState:
    return api_state(
        database_url, redis_url, blobs_behind(relay, object_store, read_timeout=2), presign_ttl=_PRESIGN_TTL
    )


@pytest.fixture
def artifact(client: TestClient, engine: Engine, object_store: ObjectStore) -> dict[str, Any]:
    """One image, whose bytes are `image 0`."""
    return _drawn(client, engine, object_store)


def _drawn(client: Any, engine: Engine, store: ObjectStore, data: bytes = b"image 0") -> dict[str, Any]:
    job = client.post("/v1/jobs", json=GOOD).json()
    draw(engine, store.blobs(), claimed(engine).fence, index=0, data=data)
    return client.get(job["links"]["artifacts"]).json()["items"][0]


def test_one_image_is_described_as_in_the_list(client: TestClient, artifact: dict[str, Any]) -> None:
    told = client.get(f"/v1/artifacts/{artifact['id']}")
    assert told.status_code == 200
    changing = {"url", "url_expires_at"}
    assert {k: v for k, v in told.json().items() if k not in changing} == {
        k: v for k, v in artifact.items() if k not in changing
    }
    assert web.get(told.json()["url"]).content == b"image 0"


def test_every_url_is_for_the_address_of_clients_and_good_for_the_time_that_is_set(
    client: TestClient, artifact: dict[str, Any], object_store: ObjectStore, relay: Relay
) -> None:
    internal, public = f"127.0.0.1:{relay.port}", urlsplit(object_store.endpoint).netloc
    alone = client.get(f"/v1/artifacts/{artifact['id']}").json()["url"]
    redirect = client.get(f"/v1/artifacts/{artifact['id']}/content").headers["Location"]
    for url in (artifact["url"], alone, redirect):
        assert urlsplit(url).netloc == public != internal
        assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == [str(_PRESIGN_TTL)]


def test_it_is_told_when_the_url_ends(artifact: dict[str, Any]) -> None:
    signed = parse_qs(urlsplit(artifact["url"]).query)
    begin = datetime.strptime(signed["X-Amz-Date"][0], "%Y%m%dT%H%M%S%z")
    assert datetime.fromisoformat(artifact["url_expires_at"]) == begin + timedelta(seconds=_PRESIGN_TTL)


def test_the_content_is_at_the_store(client: TestClient, artifact: dict[str, Any]) -> None:
    answer = client.get(f"/v1/artifacts/{artifact['id']}/content")
    assert (answer.status_code, answer.content) == (307, b"")
    assert answer.headers["Cache-Control"] == "no-store"
    got = web.get(answer.headers["Location"])
    assert (got.status_code, got.content, got.headers["Content-Type"]) == (200, b"image 0", "image/png")


def test_the_service_streams_it_to_those_who_ask(client: TestClient, artifact: dict[str, Any]) -> None:
    answer = client.get(f"/v1/artifacts/{artifact['id']}/content?redirect=false")
    assert (answer.status_code, answer.content) == (200, b"image 0")
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["Content-Length"] == "7"
    assert answer.headers["ETag"] == f'"sha256:{hashlib.sha256(b"image 0").hexdigest()}"'
    assert answer.headers["Content-Disposition"] == f'inline; filename="{artifact["job_id"]}_0.png"'
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Request-Id"]


@pytest.mark.parametrize(
    ("format", "name", "media_type"), [("jpeg", "jpg", "image/jpeg"), ("webp", "webp", "image/webp")]
)
def test_every_format_has_its_media_type_and_its_ending(
    client: TestClient, engine: Engine, artifact: dict[str, Any], format: str, name: str, media_type: str
) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE artifacts SET format = :format"), {"format": format})
    path = f"/v1/artifacts/{artifact['id']}"
    got = web.get(client.get(path).json()["url"])
    streamed = client.get(f"{path}/content?redirect=false")
    for answer in (got, streamed):
        assert (answer.content, answer.headers["Content-Type"]) == (b"image 0", media_type)
        assert f"{artifact['job_id']}_0.{name}" in answer.headers["Content-Disposition"]


def test_head_tells_what_get_would(client: TestClient, artifact: dict[str, Any], relay: Relay) -> None:
    path = f"/v1/artifacts/{artifact['id']}/content"
    streamed = client.get(f"{path}?redirect=false").headers
    with relay.refusing():
        head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("Content-Type", "Content-Length", "ETag", "Content-Disposition", "Accept-Ranges"):
        assert head.headers[name] == streamed[name]
    assert client.head(f"/v1/artifacts/{uuid.uuid4()}/content").status_code == 404


def test_who_has_the_bytes_already_is_told_so_without_the_store(
    client: TestClient, artifact: dict[str, Any], relay: Relay
) -> None:
    path = f"/v1/artifacts/{artifact['id']}/content"
    tag = client.head(path).headers["ETag"]
    with relay.refusing():
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            for answer in (
                client.get(f"{path}?redirect=false", headers={"If-None-Match": known}),
                client.head(path, headers={"If-None-Match": known}),
            ):
                assert (answer.status_code, answer.content) == (304, b""), known
                assert (answer.headers["ETag"], answer.headers["Cache-Control"]) == (tag, "private, no-cache")
    for other in ('"other"', tag.strip('"')):
        assert client.get(f"{path}?redirect=false", headers={"If-None-Match": other}).content == b"image 0"
    assert client.get(path, headers={"If-None-Match": tag}).status_code == 307, "a redirect is no content"


def test_an_image_that_is_deleted_as_it_is_asked_for_is_not_found(
    client: TestClient,
    state: ApiState,
    engine: Engine,
    artifact: dict[str, Any],
    object_store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opens = state.blobs.open

    def open_late(key: str) -> Blob:
        # Between the row and the object.
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM jobs"))
        object_store.blobs().remove([key])
        return opens(key)

    monkeypatch.setattr(state.blobs, "open", open_late)
    assert_envelope(client.get(f"/v1/artifacts/{artifact['id']}/content?redirect=false"), 404, "not_found")


def test_a_range_is_the_store_s_affair(client: TestClient, artifact: dict[str, Any]) -> None:
    path, part = f"/v1/artifacts/{artifact['id']}/content", {"Range": "bytes=0-2"}
    whole = client.get(f"{path}?redirect=false", headers=part)
    assert (whole.status_code, whole.content, whole.headers["Accept-Ranges"]) == (200, b"image 0", "none")
    got = web.get(client.get(path, headers=part).headers["Location"], headers=part)
    # rclone says 200 to a part.
    assert got.status_code in {200, 206}
    assert got.content == b"ima"


@pytest.mark.parametrize("ending", ["", "/content", "/content?redirect=false"])
def test_what_is_no_artifact_is_not_found(
    client: TestClient, engine: Engine, artifact: dict[str, Any], ending: str
) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET user_id = 'somebody'"))
    for id in (str(uuid.uuid4()), "17", "..%2Fjobs", artifact["id"], artifact["job_id"]):
        assert_envelope(client.get(f"/v1/artifacts/{id}{ending}"), 404, "not_found")


def test_bad_questions_are_refused(client: TestClient, artifact: dict[str, Any]) -> None:
    assert_envelope(client.get(f"/v1/artifacts/{artifact['id']}/content?redirect=maybe"), 422, "invalid_request")
    assert_envelope(client.delete(f"/v1/artifacts/{artifact['id']}"), 405, "method_not_allowed")


@pytest.mark.parametrize("way", ["refusing", "frozen"])
def test_without_the_store_it_is_said_before_the_first_byte(
    client: TestClient, artifact: dict[str, Any], relay: Relay, way: str
) -> None:
    path = f"/v1/artifacts/{artifact['id']}/content"
    with getattr(relay, way)():
        answer = client.get(f"{path}?redirect=false")
        assert_envelope(answer, 503, "storage_unavailable")
        assert answer.headers["Retry-After"]
        assert client.get(path).status_code == 307, "a redirect needs no store"
        assert client.get(f"/v1/artifacts/{artifact['id']}").status_code == 200


def test_an_object_that_is_not_there_or_another_one_is_said_to_be(
    client: TestClient, engine: Engine, artifact: dict[str, Any], object_store: ObjectStore
) -> None:
    path = f"/v1/artifacts/{artifact['id']}/content?redirect=false"
    with engine.connect() as connection:
        key = connection.execute(text("SELECT s3_key FROM artifacts")).scalar_one()
    object_store.blobs().put(key, b"shorter than it was, or longer", content_type="image/png")
    assert_envelope(client.get(path), 503, "storage_unavailable")
    object_store.blobs().remove([key])
    assert_envelope(client.get(path), 503, "storage_unavailable")


def test_a_large_image_passes_in_pieces(
    state: ApiState, model: NewModel, engine: Engine, object_store: ObjectStore
) -> None:
    assert model
    with served(state) as url:
        with httpx2.Client(base_url=url) as client:
            artifact = _drawn(client, engine, object_store, LARGE)
        digest, most = hashlib.sha256(), 0
        tracemalloc.start()
        with web.stream("GET", f"{url}/v1/artifacts/{artifact['id']}/content?redirect=false", timeout=60) as answer:
            for chunk in answer.iter_bytes():
                digest.update(chunk)
            most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert f"sha256:{digest.hexdigest()}" == artifact["checksum"]
    assert most < len(LARGE) / 4, "both ends are in this process"


def test_a_client_that_leaves_gives_the_store_s_connection_back(
    database_url: str, redis_url: str, object_store: ObjectStore, relay: Relay, model: NewModel, engine: Engine
) -> None:
    assert model
    blobs = blobs_behind(relay, object_store)
    with served(api_state(database_url, redis_url, blobs)) as url:
        with httpx2.Client(base_url=url) as client:
            artifact = _drawn(client, engine, object_store, LARGE)
        before = relay.connections
        for _ in range(5):
            _leave_early(url, f"/v1/artifacts/{artifact['id']}/content?redirect=false")
        wait_for(lambda: relay.connections <= before, what="the connections' end", instead=lambda: relay.connections)
        # What was read to the end keeps its connection for the next one.
        whole = web.get(f"{url}/v1/artifacts/{artifact['id']}/content?redirect=false", timeout=60)
        assert len(whole.content) == len(LARGE)


def _leave_early(url: str, path: str) -> None:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_store_that_goes_away_in_the_middle_cuts_the_answer_off(
    database_url: str, redis_url: str, object_store: ObjectStore, relay: Relay, model: NewModel, engine: Engine
) -> None:
    assert model
    blobs = blobs_behind(relay, object_store, read_timeout=2)
    with served(api_state(database_url, redis_url, blobs)) as url, httpx2.Client(base_url=url, timeout=30) as client:
        artifact = _drawn(client, engine, object_store, LARGE)
        with client.stream("GET", f"/v1/artifacts/{artifact['id']}/content?redirect=false") as answer:
            assert answer.status_code == 200
            chunks = answer.iter_bytes()
            next(chunks)
            with relay.refusing(), pytest.raises(httpx2.RemoteProtocolError):
                for _ in chunks:
                    pass


def test_a_store_that_hangs_takes_its_readers_only_with_it(
    database_url: str, redis_url: str, object_store: ObjectStore, model: NewModel, engine: Engine, relay: Relay,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert model
    monkeypatch.setattr(blobs, "_REQUEST_TIMEOUT", 60.0)
    store, begun = blobs_behind(relay, object_store), []
    open_blob = store.open
    monkeypatch.setattr(store, "open", lambda key: begun.append(key) or open_blob(key))
    # As many as the threads of a loop that has but one pool of them.
    threads = min(32, (os.cpu_count() or 1) + 4)

    async def run() -> None:
        app = create_app(api_state(database_url, redis_url, store))
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            await client.post("/v1/jobs", json=GOOD)
            (drawn,) = finish(engine, object_store.blobs(), count=1)
            path = f"/v1/artifacts/{drawn.id}/content?redirect=false"
            with relay.frozen():
                readers = [asyncio.create_task(client.get(path)) for _ in range(40)]
                while len(begun) < threads:
                    await asyncio.sleep(0.02)
                asking = asyncio.gather(client.post("/v1/jobs", json=GOOD), client.get("/readyz"))
                done, _ = await asyncio.wait({asking, *readers}, return_when=asyncio.FIRST_COMPLETED)
                assert done == {asking}
                created, ready = await asking
            assert {reader.status_code for reader in await asyncio.gather(*readers)} == {200}
        await app.state.api.close()
        assert (created.status_code, ready.status_code) == (201, 200)
        checks = ready.json()["checks"]
        assert [checks[name]["ok"] for name in ("postgres", "redis", "s3")] == [True, True, False]

    asyncio.run(run())


def test_the_routes_are_described(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    content = paths["/v1/artifacts/{artifact_id}/content"]
    assert set(content) == {"get", "head"}
    assert set(content["get"]["responses"]) >= {"200", "304", "307", "404", "422", "503"}
    assert "If-None-Match" in {parameter["name"] for parameter in content["get"]["parameters"]}
    for answer in (content["get"]["responses"]["200"], content["head"]["responses"]["200"]):
        assert {"ETag", "Content-Length", "Content-Disposition", "Cache-Control"} <= set(answer["headers"])
    create = paths["/v1/jobs"]["post"]
    assert {parameter["name"] for parameter in create["parameters"]} == {"Idempotency-Key", "Prefer"}
    assert set(paths["/v1/jobs/{job_id}/retry"]["post"]["responses"]) >= {"202", "404", "409", "503"}
    assert set(paths["/v1/jobs/{job_id}"]["delete"]["responses"]) >= {"204", "404", "409", "503"}


def test_finished_images_of_a_job_are_all_there(client: TestClient, engine: Engine, object_store: ObjectStore) -> None:
    job = client.post("/v1/jobs", json={**GOOD, "count": 3}).json()
    drawn = finish(engine, object_store.blobs(), count=3)
    for artifact in drawn:
        told = client.get(f"/v1/artifacts/{artifact.id}").json()
        assert (told["job_id"], told["item_index"]) == (job["id"], artifact.item_index)
