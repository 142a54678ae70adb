"""What clients are told while the database is away, and that they are served again once it is back."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator

import httpx2
import psycopg
import pytest
from fastapi import FastAPI
from psycopg import sql
from sqlalchemy import Engine, event, make_url, text

from dreamforge.api.app import create_app
from dreamforge.api.state import ApiRules, ApiState
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.errors import DatabaseUnavailable
from dreamforge.store import connections
from dreamforge.store import engine as engines
from dreamforge.store.engine import allow_statements, database_errors, in_time, open_async_engine, open_engine
from tests.integration.factories import Jobs, a_job, a_model
from tests.relay import Relay
from tests.service import wait_for

pytestmark = pytest.mark.timeout(120)

ALONE = 3.0
"""Seconds within which a request must be answered that is alone: 2, and one for a busy machine."""
SOON = 8.0
"""The same of very many requests at once, which take turns on this machine."""
_HELD = 1.2
"""Seconds that the first use of two waits; with a second that waits all its time, it would be 3."""
_NOBODY = "00000000-0000-7000-8000-000000000000"


@pytest.fixture
def job_id(database_url: str) -> Iterator[str]:
    engine = open_engine(database_url, application="tests")
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE jobs, models CASCADE"))
    new = a_job(a_model(engine, name="tiny"))
    Jobs(database_url).submit(new)
    yield str(new.id)
    engine.dispose()


@pytest.fixture
def app_over(redis_url: str, object_store: ObjectStore) -> Callable[[str], FastAPI]:
    def build(url: str) -> FastAPI:
        return create_app(
            ApiState(
                engine=open_async_engine(url, application="tests", pool_size=4),
                blobs=object_store.blobs(),
                redis_url=redis_url,
                rules=ApiRules(redis_outage="accept", max_body=1024 * 1024, presign_ttl=60, heartbeat_seconds=5.0),
            )
        )

    return build


@contextlib.asynccontextmanager
async def _client(app: FastAPI) -> AsyncGenerator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
        yield client
    await app.state.api.close()


def _requests(job_id: str) -> list[tuple[str, str]]:
    """Requests that succeed one after the other while the database is there."""
    job = f"/v1/jobs/{job_id}"
    return [
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs"),
        ("GET", job),
        ("POST", f"{job}/cancel"),
        ("POST", f"{job}/retry"),
        ("GET", f"{job}/artifacts"),
        ("GET", f"{job}/logs"),
        ("GET", f"{job}/progress"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/tiny"),
    ]


def _all_requests(job_id: str) -> list[tuple[str, str]]:
    """Every route that needs the database."""
    return [
        *_requests(job_id),
        ("DELETE", f"/v1/jobs/{job_id}"),
        ("GET", f"/v1/jobs/{job_id}/progress/stream"),
        ("GET", f"/v1/jobs/{job_id}/logs?follow=true"),
        ("GET", f"/v1/artifacts/{_NOBODY}"),
        ("GET", f"/v1/artifacts/{_NOBODY}/content"),
    ]


async def _ask(client: httpx2.AsyncClient, method: str, path: str) -> httpx2.Response:
    body = (
        {"type": "generate", "params": {"prompt": "a lighthouse"}} if (method, path) == ("POST", "/v1/jobs") else None
    )
    return await client.request(method, path, json=body)


async def _assert_refused(client: httpx2.AsyncClient, requests: list[tuple[str, str]]) -> None:
    began = time.monotonic()
    answers = await asyncio.gather(*(_ask(client, *request) for request in requests))
    took = time.monotonic() - began
    assert took < (SOON if len(requests) > 1 else ALONE), (took, requests)
    for request, answer in zip(requests, answers, strict=True):
        assert answer.status_code == 503, (request, answer.text)
        assert answer.json()["error"]["code"] == "database_unavailable", request
        assert int(answer.headers["retry-after"]) > 0


async def _assert_served(client: httpx2.AsyncClient, requests: list[tuple[str, str]]) -> None:
    for request in requests:
        answer = await _ask(client, *request)
        assert answer.status_code in {200, 201, 202}, (request, answer.text)


async def _until_served(client: httpx2.AsyncClient) -> None:
    async with asyncio.timeout(30):
        while (await client.get("/v1/models")).status_code != 200:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", [Relay.refusing, Relay.frozen], ids=["refusing", "frozen"])
def test_a_server_that_is_away_costs_every_route_a_503_and_nothing_once_it_is_back(
    database_url: str,
    app_over: Callable[[str], FastAPI],
    job_id: str,
    how: Callable[[Relay], contextlib.AbstractContextManager[None]],
) -> None:
    requests = _requests(job_id)

    async def run(relay: Relay) -> None:
        async with _client(app_over(relay.moved(database_url))) as client:
            await _assert_served(client, requests)
            with how(relay):
                # Twice: over connections that were open, and over none. More at once than the pool has.
                await _assert_refused(client, _all_requests(job_id))
                await _assert_refused(client, _all_requests(job_id) * 3)
                alive = await client.get("/healthz")
                assert alive.status_code == 200
            await _until_served(client)
            await _assert_served(client, requests)

    with Relay.before(database_url) as relay:
        asyncio.run(run(relay))
        wait_for(lambda: relay.connections == 0, seconds=10, what="the end of every connection")


@pytest.mark.parametrize("how", [Relay.refusing, Relay.frozen], ids=["refusing", "frozen"])
def test_each_route_says_within_three_seconds_that_the_server_is_away(
    database_url: str,
    app_over: Callable[[str], FastAPI],
    job_id: str,
    how: Callable[[Relay], contextlib.AbstractContextManager[None]],
) -> None:
    async def run(relay: Relay) -> None:
        for request in _all_requests(job_id):
            async with _client(app_over(relay.moved(database_url))) as client:
                await _assert_served(client, [("GET", "/v1/models")])
                with how(relay):
                    # Over the connection that was open.
                    await _assert_refused(client, [request])

    with Relay.before(database_url) as relay:
        asyncio.run(run(relay))


@pytest.mark.parametrize(
    ("method", "path", "first", "second"),
    [
        ("POST", "/v1/jobs", "models", "jobs IN EXCLUSIVE MODE"),
        ("POST", "/v1/jobs/{}/cancel", "steps", "jobs IN EXCLUSIVE MODE"),
        ("GET", "/v1/jobs/{}/artifacts", "steps", "artifacts"),
        ("GET", "/v1/jobs/{}/logs", "jobs", "events"),
        ("GET", "/v1/jobs?model_id=tiny", "models", "jobs"),
        ("GET", "/v1/models/tiny", "models", "model_nodes"),
    ],
)
def test_a_request_that_comes_to_the_database_twice_waits_no_longer_for_it(
    database_url: str, app_over: Callable[[str], FastAPI], job_id: str, method: str, path: str, first: str, second: str
) -> None:
    async def run() -> None:
        async with _client(app_over(database_url)) as client:
            await _assert_served(client, [("GET", "/v1/models")])
            with psycopg.connect(database_url) as one, psycopg.connect(database_url) as other:
                one.execute(f"LOCK TABLE {first}".encode())
                other.execute(f"LOCK TABLE {second}".encode())
                began = time.monotonic()
                asked = asyncio.create_task(_ask(client, method, path.format(job_id)))
                await asyncio.sleep(_HELD)
                assert not asked.done(), "the first use waits"
                one.rollback()
                assert (await asked).json()["error"]["code"] == "database_unavailable"
                assert time.monotonic() - began < _HELD + engines.USE_SECONDS - 0.2

    asyncio.run(run())


def test_a_use_inside_of_another_may_end_sooner_but_no_later() -> None:
    async def run() -> None:
        async with in_time(10):
            outer = connections.DEADLINE.get()
            async with in_time(20):
                assert connections.DEADLINE.get() == outer
            async with in_time(1):
                inner = connections.DEADLINE.get()
            assert connections.DEADLINE.get() == outer
        assert outer is not None
        assert inner is not None
        assert inner < outer

    asyncio.run(run())


def test_a_server_that_stops_in_the_middle_of_an_answer_is_left(
    database_url: str, app_over: Callable[[str], FastAPI], job_id: str
) -> None:
    """The statement waits for a lock when the server falls silent."""

    async def run(relay: Relay) -> None:
        async with _client(app_over(relay.moved(database_url))) as client:
            with psycopg.connect(database_url) as other:
                other.execute("LOCK TABLE jobs")
                asked = asyncio.create_task(client.get(f"/v1/jobs/{job_id}"))
                await _until_somebody_waits(database_url)
                with relay.frozen():
                    answer = await asyncio.wait_for(asked, ALONE)
                    assert answer.json()["error"]["code"] == "database_unavailable"
            await _until_served(client)

    with Relay.before(database_url) as relay:
        asyncio.run(run(relay))


@pytest.mark.parametrize(("moment", "request_"), [("commit", ("POST", "/v1/jobs")), ("rollback", ("GET", "/v1/jobs"))])
def test_a_server_that_stops_before_the_end_of_a_transaction_is_left(
    database_url: str, app_over: Callable[[str], FastAPI], job_id: str, moment: str, request_: tuple[str, str]
) -> None:
    """Commits and rollbacks are waited for in tasks of their own, which no cancel reaches."""
    assert job_id

    async def run(relay: Relay) -> None:
        app = app_over(relay.moved(database_url))
        async with _client(app) as client:
            await _assert_served(client, [request_])
            with contextlib.ExitStack() as freezing:
                engine = app.state.api.engine.sync_engine
                event.listen(engine, moment, lambda *_: freezing.enter_context(relay.frozen()), once=True)
                await _assert_refused(client, [request_])
            await _until_served(client)
            await _assert_served(client, [request_])

    with Relay.before(database_url) as relay:
        asyncio.run(run(relay))
        wait_for(lambda: relay.connections == 0, seconds=10, what="the end of every connection")


async def _until_somebody_waits(database_url: str, *, somebody: bool = True) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(30), await psycopg.AsyncConnection.connect(database_url, autocommit=True) as watcher:
        while ((await (await watcher.execute(query)).fetchone() or (0,))[0] > 0) is not somebody:
            await asyncio.sleep(0.02)


def test_the_server_gives_up_what_nobody_waits_for(
    database_url: str, app_over: Callable[[str], FastAPI], job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "API_STATEMENT_TIMEOUT_MS", 100_000)
    app = app_over(database_url)

    async def run() -> None:
        async with _client(app) as client:
            with psycopg.connect(database_url) as other:
                other.execute("LOCK TABLE jobs")
                asked = asyncio.create_task(client.get(f"/v1/jobs/{job_id}"))
                await _until_somebody_waits(database_url)
                assert (await asked).status_code == 503
                await _until_somebody_waits(database_url, somebody=False)

    asyncio.run(run())


def test_statements_are_short_but_in_a_transaction_that_asks_for_more(database_url: str) -> None:
    async def run() -> list[str]:
        engine, told = open_async_engine(database_url, application="tests", pool_size=1), []
        for seconds in (None, 8.5, None):
            async with engine.begin() as connection:
                if seconds is not None:
                    await allow_statements(connection, seconds=seconds)
                told.append((await connection.execute(text("SHOW statement_timeout"))).scalar_one())
        await engine.dispose()
        return told

    assert asyncio.run(run()) == ["2s", "8500ms", "2s"]


@contextlib.contextmanager
def _unreachable(database_url: str) -> Generator[str]:
    """The URL with a place where packets get no answer: a listener whose queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as fillers:
        port = listener.getsockname()[1]
        for _ in range(4):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield make_url(database_url).set(host="127.0.0.1", port=port).render_as_string(hide_password=False)


def test_a_server_that_cannot_be_reached(database_url: str, app_over: Callable[[str], FastAPI]) -> None:
    async def run(url: str) -> None:
        async with _client(app_over(url)) as client:
            await _assert_refused(client, _all_requests(_NOBODY))

    with _unreachable(database_url) as url:
        asyncio.run(run(url))


@pytest.fixture
def painter(database_url: str) -> Iterator[str]:
    """The URL for a user who is no superuser, and may connect three times at once."""
    url = make_url(database_url)
    role = sql.Identifier("painter")
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x' CONNECTION LIMIT 3").format(role))
        admin.execute(sql.SQL("GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {}").format(role))
        yield url.set(username="painter", password="x").render_as_string(hide_password=False)
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'painter'")
        admin.execute(sql.SQL("DROP OWNED BY {0}").format(role))
        admin.execute(sql.SQL("DROP ROLE {}").format(role))


def test_a_server_that_is_out_of_connections(painter: str, app_over: Callable[[str], FastAPI], job_id: str) -> None:
    async def run() -> None:
        async with _client(app_over(painter)) as client:
            with contextlib.ExitStack() as others:
                for _ in range(3):
                    others.enter_context(psycopg.connect(painter))
                await _assert_refused(client, _all_requests(job_id))
            await _until_served(client)
            await _assert_served(client, _requests(job_id))

    asyncio.run(run())


def test_a_server_that_takes_no_writes_refuses_those_and_serves_the_rest(
    painter: str, database_url: str, app_over: Callable[[str], FastAPI], job_id: str
) -> None:
    writes = [("POST", "/v1/jobs"), ("POST", f"/v1/jobs/{job_id}/cancel"), ("POST", f"/v1/jobs/{job_id}/retry")]
    reads = [request for request in _requests(job_id) if request not in writes]

    async def run(set_read_only: Callable[[str], Awaitable[None]]) -> None:
        await set_read_only("on")
        async with _client(app_over(painter)) as client:
            await _assert_served(client, reads)
            await _assert_refused(client, writes)
        await set_read_only("off")
        async with _client(app_over(painter)) as client:
            await _assert_served(client, writes)

    async def set_read_only(value: str) -> None:
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as admin:
            await admin.execute(f"ALTER ROLE painter SET default_transaction_read_only = {value}".encode())

    asyncio.run(run(set_read_only))


def test_a_thread_does_not_wait_for_ever_for_a_silent_server(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SILENCE_SECONDS", 0.5)

    def ask(engine: Engine) -> int:
        with database_errors(), engine.connect() as connection:
            return connection.execute(text("SELECT 1")).scalar_one()

    with Relay.before(database_url) as relay:
        engine = open_engine(relay.moved(database_url), application="tests", pool_size=1)
        assert ask(engine) == 1
        with relay.frozen(), pytest.raises(DatabaseUnavailable):
            ask(engine)
        assert ask(engine) == 1
        engine.dispose()
