"""`/metrics` and `/readyz`: of the whole service, and told without a database too."""

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, text

from dreamforge.api import metrics, readiness
from dreamforge.blobs import Blobs
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.errors import DatabaseUnavailable
from dreamforge.jobs.job import JobStatus, Lane, StepStatus
from dreamforge.store.engine import open_async_engine
from dreamforge.store.heartbeats import HeartbeatStore
from dreamforge.store.models import NewModel
from dreamforge.store.statistics import StatisticsStore, TotalFigures
from tests.integration.door import make_app
from tests.integration.factories import Jobs, a_job
from tests.relay import Relay
from tests.service import wait_for

Labels = frozenset[tuple[str, str]]


def _figures(client: TestClient, **headers: str) -> dict[tuple[str, Labels], float]:
    response = client.get("/metrics", headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    return _parsed(response.text, text_string_to_metric_families)


def _parsed(told: str, parse: Callable[[str], Any]) -> dict[tuple[str, Labels], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(told)
        for sample in family.samples
    }


def _of(figures: dict[tuple[str, Labels], float], name: str, **labels: str) -> float:
    return figures[name, frozenset(labels.items())]


@pytest.fixture
def busy(engine: Engine, model: NewModel, database_url: str) -> None:
    """Three jobs: one waits for an hour, one for its retry, one has failed; an image; a dispatcher, and an old node."""
    jobs = [a_job(model) for _ in range(3)]
    for job in jobs:
        Jobs(database_url).submit(job)
    waiting, retrying, failed = jobs
    beats = HeartbeatStore(engine=engine)
    beats.beat(id="dispatcher:1", kind="dispatcher", node="head", info={"slots": 5})
    beats.beat(id="dispatcher:0", kind="dispatcher", node="head", info={"slots": 3})
    beats.beat(id="node:1", kind="node", node="10.0.0.7", info={"gpus": 2})
    with engine.begin() as connection:
        for statement, values in (
            ("UPDATE jobs SET created_at = now() - interval '1 hour' WHERE id = :id", {"id": waiting.id}),
            (
                "UPDATE steps SET next_attempt_at = now() + interval '5 minutes' WHERE job_id = :id",
                {"id": retrying.id},
            ),
            ("UPDATE jobs SET status = 'failed' WHERE id = :id", {"id": failed.id}),
            (
                """UPDATE steps SET status = 'failed', error_json = '{"code": "oom"}' WHERE job_id = :id""",
                {"id": failed.id},
            ),
            (
                "INSERT INTO artifacts (id, job_id, step_id, item_index, attempt, format, width, height, seed, s3_key, "
                "size_bytes, checksum, metadata_json) "
                "VALUES (:a, :id, :step, 0, 1, 'png', 8, 8, 1, 'k', 5000000000, '', '{}')",
                {"a": uuid.uuid4(), "id": failed.id, "step": failed.step_ids[0]},
            ),
            ("UPDATE heartbeats SET seen_at = now() - interval '100 s' WHERE id = 'dispatcher:0'", {}),
            ("UPDATE heartbeats SET seen_at = now() - interval '200 s' WHERE kind = 'node'", {}),
        ):
            connection.execute(text(statement), values)


@pytest.mark.usefixtures("busy")
def test_the_figures_are_those_of_the_database(client: TestClient) -> None:
    figures = _figures(client)
    assert _of(figures, "dreamforge_database_up") == 1
    assert {status: _of(figures, "dreamforge_jobs", status=status) for status in JobStatus} == {
        **dict.fromkeys(JobStatus, 0),
        "queued": 2,
        "failed": 1,
    }
    assert _of(figures, "dreamforge_steps", lane="gpu", status="queued") == 2
    assert _of(figures, "dreamforge_steps", lane="gpu", status="failed") == 1
    assert _of(figures, "dreamforge_failed_steps", code="oom") == 1
    assert _of(figures, "dreamforge_due_steps", lane="gpu") == 1
    assert 3600 <= _of(figures, "dreamforge_oldest_due_step_age_seconds", lane="gpu") < 4200
    assert _of(figures, "dreamforge_due_steps", lane="io") == 0
    assert _of(figures, "dreamforge_oldest_due_step_age_seconds", lane="io") == 0
    assert (_of(figures, "dreamforge_artifacts"), _of(figures, "dreamforge_artifacts_bytes")) == (1, 5e9)
    assert _of(figures, "dreamforge_heartbeat_age_seconds", kind="dispatcher", node="head") < 90
    assert _of(figures, "dreamforge_heartbeat_age_seconds", kind="node", node="10.0.0.7") >= 200
    assert not [labels for name, labels in figures if name == "dreamforge_node_gpus"], "it is not alive"
    assert len({(lane, status) for lane in Lane for status in StepStatus}) == len(
        [name for name, _ in figures if name == "dreamforge_steps"]
    )


@pytest.mark.usefixtures("busy")
def test_slots_are_told_of_what_is_alive(
    database_url: str, redis_url: str, object_store: ObjectStore, model: NewModel
) -> None:
    assert model
    # Whatever the machine does meanwhile, ten minutes will do.
    app = make_app(database_url, redis_url, object_store.blobs(), heartbeat_seconds=600 / 3)
    with TestClient(app) as client:
        figures = _figures(client)
    assert _of(figures, "dreamforge_dispatcher_slots", node="head") == 5, "of two, the one that was seen last"
    assert _of(figures, "dreamforge_node_gpus", node="10.0.0.7") == 2


def test_each_gpu_s_memory_is_told_and_whether_it_may_be_drawn_on(client: TestClient, engine: Engine) -> None:
    beats = HeartbeatStore(engine=engine)
    figures = {"gpu_mem_used_before": 100, "peak_gpu_mem_used": None, "gpu_mem_used_after": 300}
    for uuid_, is_healthy in (("GPU-1", True), ("GPU-2", False)):
        info = {**figures, "gpu_uuid": uuid_, "is_healthy": is_healthy}
        beats.beat(id=f"gpu:{uuid_}", kind="gpu", node="10.0.0.7", info=info)
    told = _figures(client)
    assert _of(told, "dreamforge_gpu_healthy", node="10.0.0.7", gpu="GPU-1") == 1
    assert _of(told, "dreamforge_gpu_healthy", node="10.0.0.7", gpu="GPU-2") == 0
    phases = {
        dict(labels)["phase"]: value
        for (name, labels), value in told.items()
        if name == "dreamforge_gpu_memory_bytes" and dict(labels)["gpu"] == "GPU-2"
    }
    assert phases == {"before": 100, "after": 300}, "torch has not told of a peak"


def test_names_follow_the_conventions(client: TestClient) -> None:
    told = client.get("/metrics").text
    for family in text_string_to_metric_families(told):
        assert family.name.startswith("dreamforge_")
        assert family.documentation
        assert family.type == "gauge", "what can go down is no counter"
        assert not family.name.endswith("_total")


def test_openmetrics_is_spoken_to_who_accepts_it(client: TestClient) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    response = client.get("/metrics", headers={"Accept": accept})
    assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert _of(_parsed(response.text, parse_openmetrics), "dreamforge_database_up") == 1
    assert _figures(client, Accept="*/*")


@pytest.mark.parametrize("version", ["abc", "1.", "x.y;escaping=allow-utf-8", "9" * 5000, ""])
@pytest.mark.parametrize("media_type", ["application/openmetrics-text", "text/plain"])
def test_a_version_that_is_none_is_no_trouble(client: TestClient, media_type: str, version: str) -> None:
    response = client.get("/metrics", headers={"Accept": f"{media_type}; version={version}"})
    assert response.status_code == 200
    assert "dreamforge_database_up 1.0" in response.text


def test_without_a_database_the_figures_are_missing_and_that_is_told(redis_url: str, object_store: ObjectStore) -> None:
    nowhere = "postgresql://u:p@127.0.0.1:1/d"
    with TestClient(make_app(nowhere, redis_url, object_store.blobs())) as client:
        figures = _figures(client)
    assert _of(figures, "dreamforge_database_up") == 0
    assert {name for name, _ in figures} == {"dreamforge_database_up", "dreamforge_build_info"}


def test_a_database_that_freezes_holds_no_scrape_up(
    database_url: str,
    redis_url: str,
    object_store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "PATIENCE", 0.5)
    monkeypatch.setattr(metrics, "LIVE_SECONDS", 0.0)
    with (
        Relay.before(database_url) as relay,
        TestClient(make_app(relay.moved(database_url), redis_url, object_store.blobs())) as client,
    ):
        assert _of(_figures(client), "dreamforge_database_up") == 1
        with relay.frozen():
            for _ in range(3):
                assert _of(_figures(client), "dreamforge_database_up") == 0
        wait_for(lambda: _of(_figures(client), "dreamforge_database_up") == 1, what="the figures' return")


@pytest.mark.usefixtures("busy")
def test_readiness_says_since_when_somebody_is_missing(client: TestClient) -> None:
    checks = client.get("/readyz").json()["checks"]
    assert checks["dispatcher"]["ok"]
    assert checks["gpu_nodes"]["message"].startswith("No GPU node is up. The last one was seen 2")


def test_readiness_is_told_in_time_whatever_freezes(
    database_url: str, redis_url: str, object_store: ObjectStore, model: NewModel
) -> None:
    assert model
    with (
        Relay.before(database_url) as database,
        Relay.before(redis_url) as redis,
        TestClient(
            make_app(database.moved(database_url), redis.moved(redis_url), object_store.blobs(), redis_outage="reject")
        ) as client,
    ):
        assert client.get("/readyz").status_code == 200
        for frozen, name in ((database, "postgres"), (redis, "redis")):
            with frozen.frozen():
                response = client.get("/readyz")
                assert response.status_code == 503
                assert int(response.headers["Retry-After"]) > 0
                assert response.json()["status"] == "unavailable"
                check = response.json()["checks"][name]
                assert (check["ok"], check["required"]) == (False, True)
                assert check["message"]


def test_probes_do_not_pile_up_behind_a_server_that_hangs(
    database_url: str, redis_url: str, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "CHECK_SECONDS", 0.05)
    with Relay.before(object_store.endpoint) as relay:
        blobs = Blobs(replace(object_store.settings(), endpoint=f"http://127.0.0.1:{relay.port}"))
        asking, most, ping = 0, 0, blobs.ping

        def counted() -> None:
            nonlocal asking, most
            asking += 1
            most = max(most, asking)
            try:
                ping()
            finally:
                asking -= 1

        monkeypatch.setattr(blobs, "ping", counted)
        with TestClient(make_app(database_url, redis_url, blobs)) as client, relay.frozen():
            for _ in range(20):
                assert client.get("/readyz").json()["checks"]["s3"]["ok"] is False
    assert most == 1


def test_however_many_scrape_the_database_is_asked_once(database_url: str, engine: Engine) -> None:
    assert engine
    counted: list[str] = []

    class Counting(StatisticsStore):
        async def live(self) -> Any:
            counted.append("live")
            return await super().live()

        async def totals(self) -> Any:
            counted.append("totals")
            return await super().totals()

    async def scrape() -> None:
        figures = open_async_engine(database_url, application="tests")
        replica = metrics.Metrics(Counting(engine=figures), alive_seconds=15.0)
        told = await asyncio.gather(*(replica.exposition("") for _ in range(20)))
        assert len({tuple(line for line in body.splitlines() if b"age_seconds" not in line) for body, _ in told}) == 1
        await figures.dispose()

    asyncio.run(scrape())
    assert sorted(counted) == ["live", "totals"]


def test_totals_that_cannot_be_counted_are_told_for_a_while_and_not_counted_at_every_scrape(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine
    counted: list[str] = []

    class Large(StatisticsStore):
        async def totals(self) -> TotalFigures:
            counted.append("totals")
            if len(counted) > 1:
                raise DatabaseUnavailable
            return await super().totals()

    async def scrapes() -> list[dict[tuple[str, Labels], float]]:
        figures, told = open_async_engine(database_url, application="tests"), []
        replica = metrics.Metrics(Large(engine=figures), alive_seconds=15.0)
        for seconds in (0, 61, 62, 63, 599, 700):
            monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda now=1e9 + seconds: now))
            body, _ = await replica.exposition("")
            told.append(_parsed(body.decode(), text_string_to_metric_families))
        await figures.dispose()
        return told

    told = asyncio.run(scrapes())
    ages = [figures.get(("dreamforge_totals_age_seconds", frozenset())) for figures in told]
    assert ages == [0, 61, 62, 63, 599, None]
    assert [("dreamforge_artifacts", frozenset()) in figures for figures in told] == [True] * 5 + [False]
    assert len(counted) == 4, "at 0, 61, 599 and 700 s"


def test_totals_have_more_time_than_a_client(database_url: str, engine: Engine) -> None:
    async def count() -> TotalFigures:
        figures = open_async_engine(database_url, application="tests")
        counting = asyncio.create_task(StatisticsStore(engine=figures).totals())
        await asyncio.wait({counting}, timeout=2.5)
        assert not counting.done(), "longer than a statement of the API may take"
        locking.rollback()
        try:
            return await counting
        finally:
            await figures.dispose()

    with engine.connect() as locking:
        locking.execute(text("LOCK TABLE artifacts"))
        assert asyncio.run(count()).artifacts == 0
