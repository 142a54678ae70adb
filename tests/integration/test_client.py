"""Both clients over a real HTTP server, Postgres and S3; only the supervisor's work is played."""

import asyncio
import hashlib
import socket
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvicorn
from sqlalchemy import Engine, text
from uuid6 import uuid7

from dreamforge.api.app import create_app
from dreamforge.api.schemas import Job
from dreamforge.api.state import ApiRules, ApiState
from dreamforge.client import ApiError, AsyncClient, ChecksumMismatch, Client, UnexpectedAnswer, Unreachable
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.embedded.ports import free_port
from dreamforge.jobs.events import ItemStarted
from dreamforge.jobs.outcome import Outcome
from dreamforge.store.attempts import AttemptStore, NewArtifact
from dreamforge.store.endings import EndingStore
from dreamforge.store.engine import open_async_engine, open_engine
from dreamforge.store.fence import Fence
from tests.integration.factories import a_model, claim
from tests.running_stack import wait_for

T = TypeVar("T")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_engine(database_url, application="tests")
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE jobs, models CASCADE"))
    a_model(engine, name="tiny")
    yield engine
    engine.dispose()


@pytest.fixture
def url(database_url: str, redis_url: str, object_store: ObjectStore, engine: Engine) -> Iterator[str]:
    assert engine
    state = ApiState(
        engine=open_async_engine(database_url, application="tests"),
        blobs=object_store.blobs(),
        redis_url=redis_url,
        rules=ApiRules(redis_outage="accept", max_body=1024 * 1024, presign_ttl=60, heartbeat_seconds=5.0),
    )
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(state), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started, what="the server")
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


class _Awaited:
    """An async client whose methods are awaited one by one, so that one test serves both clients."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(url)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            value = getattr(self._client, name)(*arguments, **named)
            return self._all(value) if hasattr(value, "__aiter__") else self._one(value)

        return call

    def end(self) -> None:
        self._one(self._client.close())
        self._loop.close()

    def _one(self, value: Awaitable[T]) -> T:
        async def wait() -> T:
            return await value

        return self._loop.run_until_complete(wait())

    def _all(self, values: AsyncIterator[T]) -> list[T]:
        async def collect() -> list[T]:
            return [value async for value in values]

        return self._loop.run_until_complete(collect())


@pytest.fixture(params=["blocking", "async"])
def client(request: pytest.FixtureRequest, url: str) -> Iterator[Any]:
    if request.param == "blocking":
        with Client(url) as client:
            yield client
    else:
        awaited = _Awaited(url)
        yield awaited
        awaited.end()


def _draw(engine: Engine, store: ObjectStore, fence: Fence, *, index: int, data: bytes) -> None:
    key = f"drawn/{uuid.uuid4()}"
    store.blobs().put(key, data, content_type="image/png")
    attempt = AttemptStore(engine=engine, fence=fence)
    attempt.begin_item(ItemStarted(item_index=index, seed=index))
    attempt.publish(
        NewArtifact(
            id=uuid7(),
            item_index=index,
            format="png",
            width=64,
            height=64,
            seed=index,
            s3_key=key,
            size_bytes=len(data),
            checksum=hashlib.sha256(data).hexdigest(),
            metadata={},
            timings={},
        )
    )


def _finish(engine: Engine, store: ObjectStore, *, count: int) -> None:
    claimed = claim(engine)
    assert claimed is not None
    for index in range(count):
        _draw(engine, store, claimed.fence, index=index, data=b"image %d" % index)
    AttemptStore(engine=engine, fence=claimed.fence).report(Outcome(), metadata={})
    EndingStore(engine=engine).finalize(claimed.fence)


def test_a_job_is_submitted_waited_for_and_its_images_are_saved(
    client: Any, engine: Engine, object_store: ObjectStore, tmp_path: Path
) -> None:
    job = client.submit("a fox", count=3, model="tiny@1", priority="high", params={"seed": 7}, metadata={"a": "b"})
    assert (job.status, job.count, job.priority, job.params["seed"], job.metadata) == (
        "queued", 3, "high", 7, {"a": "b"},
    )  # fmt: skip
    assert client.get(job.id) == job
    drawing = threading.Thread(target=_finish, args=(engine, object_store), kwargs={"count": 3})
    drawing.start()
    ended = client.wait(job.id, timeout=60)
    drawing.join()
    assert (ended.status, ended.progress.items_done) == ("succeeded", 3)
    artifacts = list(client.artifacts(job.id))
    for artifact in artifacts:
        target = tmp_path / f"{artifact.seed}.png"
        assert client.download(artifact, target) == target
        assert target.read_bytes() == b"image %d" % artifact.item_index
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png", "2.png"]


def test_pages_of_jobs_are_one_list(client: Any) -> None:
    jobs: list[Job] = [client.submit(f"fox {number}") for number in range(7)]
    assert [job.id for job in client.list(page_size=3)] == [job.id for job in reversed(jobs)]
    client.cancel(jobs[2].id)
    assert [job.id for job in client.list(status=["cancelled"])] == [jobs[2].id]
    assert list(client.list(status=["running", "failed"], model="tiny")) == []


def test_a_cancel_is_answered_with_the_job(client: Any) -> None:
    job = client.submit("a fox")
    assert [client.cancel(job.id).status for _ in range(2)] == ["cancelled", "cancelled"]


def test_events_are_read_from_any_place_and_followed_to_the_end(
    client: Any, engine: Engine, object_store: ObjectStore
) -> None:
    job = client.submit("a fox")
    drawing = threading.Thread(target=_finish, args=(engine, object_store), kwargs={"count": 1})
    drawing.start()
    followed = list(client.logs(job.id, follow=True))
    drawing.join()
    assert [event.seq for event in followed] == list(range(1, len(followed) + 1))
    assert followed[-1].code == "job.succeeded"
    assert list(client.logs(job.id)) == followed
    assert [event.seq for event in client.logs(job.id, after=3)] == [event.seq for event in followed[3:]]


def test_models_and_readiness_are_told(client: Any) -> None:
    (model,) = client.models()
    assert (model.name, model.installed) == ("tiny", True)
    readiness = client.readiness()
    assert (readiness.status, readiness.checks["postgres"].ok) == ("degraded", True)


def test_the_service_s_errors_keep_their_code_and_details(client: Any) -> None:
    with pytest.raises(ApiError) as caught:
        client.submit("a fox", model="sdxl-base")
    error = caught.value
    assert (error.status, error.code, error.details) == (422, "unknown_model", {"model_id": "sdxl-base"})
    assert error.request_id
    for call in (
        client.get,
        client.cancel,
        client.wait,
        lambda id: list(client.logs(id)),
        lambda id: list(client.stream(id)),
        client.progress,
    ):
        with pytest.raises(ApiError) as caught:
            call("../../healthz")
        assert caught.value.code == "not_found"


def test_what_was_tampered_with_is_not_kept(
    client: Any, engine: Engine, object_store: ObjectStore, tmp_path: Path
) -> None:
    job = client.submit("a fox")
    _finish(engine, object_store, count=1)
    (artifact,) = client.artifacts(job.id)
    with engine.connect() as connection:
        key = connection.execute(text("SELECT s3_key FROM artifacts")).scalar_one()
    object_store.blobs().put(key, b"another", content_type="image/png")
    with pytest.raises(ChecksumMismatch):
        client.download(artifact, tmp_path / "x.png")
    forged = artifact.model_copy(update={"url": artifact.url.replace("Signature=", "Signature=0")})
    with pytest.raises(UnexpectedAnswer) as caught:
        client.download(forged, tmp_path / "x.png")
    assert "Signature" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_download_that_breaks_off_begins_again(
    client: Any, engine: Engine, object_store: ObjectStore, tmp_path: Path
) -> None:
    job = client.submit("a fox")
    _finish(engine, object_store, count=1)
    (artifact,) = client.artifacts(job.id)
    listener = socket.create_server(("127.0.0.1", 0))

    def break_off_once() -> None:
        for body in (b"ima", b"image 0"):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\n" + body)

    store = threading.Thread(target=break_off_once)
    store.start()
    elsewhere = artifact.model_copy(update={"url": f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"})
    assert client.download(elsewhere, tmp_path / "x.png").read_bytes() == b"image 0"
    store.join()
    listener.close()
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_nobody_there_is_said_so(kind: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    client: Any = Client(url) if kind == "blocking" else _Awaited(url)
    with pytest.raises(Unreachable) as caught:
        client.submit("a fox")
    assert (caught.value.url, caught.value.is_store) == (url, False)
    assert caught.value.__cause__ is not None
    with pytest.raises(Unreachable):
        list(client.list())
    client.end() if kind == "async" else client.close()


def test_a_read_is_repeated_until_the_service_is_there(url: str) -> None:
    """Something that hangs up twice stands before the service."""
    hung_up: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def hang_up_twice() -> None:
        for number in range(2):
            connection, _ = listener.accept()
            connection.close()
            hung_up.append(number)
        connection, _ = listener.accept()
        with connection, socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as service:
            service.sendall(connection.recv(65536).replace(b"keep-alive", b"close"))
            while chunk := service.recv(65536):
                connection.sendall(chunk)

    door = threading.Thread(target=hang_up_twice)
    door.start()
    with Client(f"http://127.0.0.1:{port}") as client:
        assert [model.name for model in client.models()] == ["tiny"]
    door.join()
    listener.close()
    assert hung_up == [0, 1]
