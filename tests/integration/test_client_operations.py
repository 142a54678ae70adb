"""Both clients' posts, retries and deletions over a real HTTP server, and what becomes of a post that is lost."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import Engine, text

from dreamforge.api.state import ApiState
from dreamforge.client import ApiError, AsyncClient, Client, Unreachable
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.store.models import NewModel
from tests.integration.door import served
from tests.integration.factories import claimed, finish


@pytest.fixture
def url(state: ApiState, model: NewModel) -> Iterator[str]:
    assert model
    with served(state) as url:
        yield url


class _Awaited:
    """An async client whose methods are awaited one by one."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(url)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            value = getattr(self._client, name)(*arguments, **named)
            return self._loop.run_until_complete(self._all(value) if hasattr(value, "__aiter__") else value)

        return call

    @staticmethod
    async def _all(values: Any) -> list[Any]:
        return [value async for value in values]

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


@pytest.fixture(params=[Client, _Awaited], ids=["blocking", "async"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def _jobs(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM jobs")).scalar_one()


def test_each_submit_makes_a_job_and_a_key_of_one_s_own_makes_one(kind: Any, url: str, engine: Engine) -> None:
    with kind(url) as client:
        assert client.submit("a fox").id != client.submit("a fox").id
        jobs = [client.submit("a fox", idempotency_key="order-17") for _ in range(3)]
        assert len({job.id for job in jobs}) == 1
        with pytest.raises(ApiError) as caught:
            client.submit("an owl", idempotency_key="order-17")
        assert caught.value.code == "idempotency_key_reused"
        with pytest.raises(ValueError, match="ASCII"):
            client.submit("an owl", idempotency_key="")
    assert _jobs(engine) == 3


def test_each_wish_for_a_model_makes_a_job_and_is_left_to_the_service_to_judge(
    kind: Any, url: str, engine: Engine
) -> None:
    with kind(url) as client:
        job = client.download_model(
            "civitai:277058@1920523", name="xl", kind="lora", default=False, local_only=True, metadata={"for": "a test"}
        )
        assert (job.type, job.status, job.metadata) == ("model_download", "queued", {"for": "a test"})
        assert (job.params["name"], job.params["kind"], job.params["version"]) == ("xl", "lora", None)
        assert (job.params["default"], job.params["local_only"]) == (False, True)
        assert client.get(job.id) == job
        again = [client.download_model("hf:org/repo", idempotency_key="model-17") for _ in range(2)]
        assert len({job.id for job in again}) == 1
        with pytest.raises(ApiError) as caught:
            client.download_model("file:/etc/passwd")
        assert caught.value.code == "invalid_request"
    assert _jobs(engine) == 2


def test_an_answer_may_be_held_until_the_end_longer_than_the_client_s_patience(
    kind: Any, url: str, engine: Engine, object_store: ObjectStore
) -> None:
    drawing = threading.Timer(3, lambda: finish(engine, object_store.blobs(), count=1))
    with ThreadPoolExecutor(1):
        drawing.start()
        client = kind(url) if kind is _Awaited else Client(url, timeout=2)
        with client as client:
            assert client.submit("a fox", wait=60).status == "succeeded"
    drawing.join()


def test_a_job_is_retried_and_deleted(kind: Any, url: str, engine: Engine, object_store: ObjectStore) -> None:
    with kind(url) as client:
        job = client.submit("a fox", count=2)
        for operation in (client.retry, client.delete):
            with pytest.raises(ApiError) as caught:
                operation(job.id)
            assert (caught.value.status, caught.value.code) == (409, "conflict")
        finish(engine, object_store.blobs(), count=1, of=2)
        again = client.retry(job.id)
        assert (again.id, again.status, again.progress.items_done) == (job.id, "queued", 1)
        client.cancel(job.id)
        client.delete(job.id)
        for operation in (client.get, client.delete, client.retry):
            with pytest.raises(ApiError) as caught:
                operation(job.id)
            assert caught.value.code == "not_found"


def test_one_image_is_had_by_its_id(
    kind: Any, url: str, engine: Engine, object_store: ObjectStore, tmp_path: Path
) -> None:
    with kind(url) as client:
        job = client.submit("a fox")
        finish(engine, object_store.blobs(), count=1)
        (listed,) = client.artifacts(job.id)
        artifact = client.artifact(listed.id)
        assert artifact.checksum == listed.checksum
        assert client.download(artifact, tmp_path / "x.png").read_bytes() == b"image 0"
        with pytest.raises(ApiError) as caught:
            client.artifact(job.id)
        assert caught.value.code == "not_found"


class _LossyDoor:
    """Passes requests on to the service, and hangs up on the client with the first ``losses`` answers in hand."""

    def __init__(self, url: str, *, losses: int) -> None:
        parts = urlsplit(url)
        self._service = (parts.hostname, parts.port)
        self._losses = losses
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.answers: list[bytes] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "_LossyDoor":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                answer = self._asked(client)
                self.answers.append(answer)
                if len(self.answers) > self._losses:
                    client.sendall(answer)

    def _asked(self, client: socket.socket) -> bytes:
        request = client.recv(65536)
        head, _, body = request.partition(b"\r\n\r\n")
        (length,) = [
            int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-len")
        ]
        while len(body) < length:
            body += client.recv(65536)
        head = head.replace(b"keep-alive", b"close")
        with socket.create_connection(self._service) as service:
            service.sendall(head + b"\r\n\r\n" + body)
            answer = b""
            while chunk := service.recv(65536):
                answer += chunk
        return answer


def test_a_post_whose_answer_was_lost_is_repeated_and_makes_one_job(kind: Any, url: str, engine: Engine) -> None:
    with _LossyDoor(url, losses=2) as door, kind(door.url) as client:
        job = client.submit("a fox")
        assert (job.status, _jobs(engine)) == ("queued", 1)
    assert len(door.answers) == 3
    assert all(answer.startswith(b"HTTP/1.1 201") for answer in door.answers)
    assert [b"idempotency-replayed: true" in answer.lower() for answer in door.answers] == [False, True, True]


def test_a_post_that_is_lost_again_and_again_is_told_and_can_be_found_by_its_key(
    kind: Any, url: str, engine: Engine
) -> None:
    with _LossyDoor(url, losses=99) as door, kind(door.url) as client, pytest.raises(Unreachable):
        client.submit("a fox", idempotency_key="order-17")
    assert _jobs(engine) == 1
    with kind(url) as client:
        job = client.submit("a fox", idempotency_key="order-17")
        assert _jobs(engine) == 1
    assert claimed(engine).fence.job_id == job.id
