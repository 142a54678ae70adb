"""`GET /v1/jobs` and `POST /v1/jobs/{id}/cancel` over a real Postgres, and the pages of the store beneath."""

import threading
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event, text
from sqlalchemy.dialects import postgresql
from uuid6 import uuid7

from dreamforge.api.cursor import decode_job_cursor, encode_job_cursor
from dreamforge.api.state import ApiState
from dreamforge.jobs.events import ItemStarted
from dreamforge.jobs.outcome import Failure
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.endings import EndingStore
from dreamforge.store.listing import JobFilter, JobPlace, page_of_jobs
from dreamforge.store.models import NewModel
from tests.integration.door import GOOD, assert_envelope
from tests.integration.factories import Jobs, a_job, a_model, claim

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def _write(engine: Engine, model: NewModel, *, count: int, created_at: str, status: str = "queued") -> None:
    """Many jobs in one statement; ``created_at`` is SQL over the number ``n``."""
    with engine.begin() as connection:
        connection.execute(
            text(
                f"""
                INSERT INTO jobs (id, type, status, priority, model_id, count, params_json, options_json,
                                  metadata_json, request_id, created_at)
                SELECT gen_random_uuid(), 'generate', '{status}', 'normal', :model, 1, '{{}}', '{{}}', '{{}}', 'test',
                       {created_at}
                FROM generate_series(0, :last) AS n
                """  # noqa: S608 - the test's own words
            ),
            {"model": model.id, "last": count - 1},
        )


def _ids(client: TestClient, query: str) -> list[str]:
    response = client.get(f"/v1/jobs?{query}")
    assert response.status_code == 200, response.text
    return [job["id"] for job in response.json()["items"]]


def test_two_thousand_jobs_are_paged_once_each_while_others_are_added(
    engine: Engine, jobs: Jobs, model: NewModel
) -> None:
    # Four of the same microsecond each time, three microseconds apart: times alone tell no order.
    _write(engine, model, count=2000, created_at=f"timestamptz '{START}' + (n / 4) * interval '3 microseconds'")
    with engine.connect() as connection:
        expected = list(connection.execute(text("SELECT id FROM jobs ORDER BY created_at DESC, id")).scalars())
    stop = threading.Event()

    def add() -> None:
        while not stop.is_set():
            _write(engine, model, count=5, created_at="now()")

    adder = threading.Thread(target=add)
    adder.start()
    try:
        before = JobFilter(created_before=START + timedelta(hours=1))
        paged: list[list[uuid.UUID]] = []
        for wanted in (before, JobFilter()):
            seen: list[uuid.UUID] = []
            after: JobPlace | None = None
            while True:
                page = jobs.page(wanted, after=after, limit=77)
                seen += [record.job.id for record in page.jobs]
                if not page.more:
                    break
                last = page.jobs[-1].job
                # As a client has it: through the cursor.
                after = decode_job_cursor(encode_job_cursor(JobPlace(last.created_at, last.id)))
            paged.append(seen)
    finally:
        stop.set()
        adder.join()
    assert paged[0] == expected
    assert [id for id in paged[1] if id in set(expected)] == expected
    assert len(paged[1]) == len(set(paged[1])) > len(expected)


def test_a_page_is_read_in_four_statements(state: ApiState, client: TestClient, model: NewModel, jobs: Jobs) -> None:
    for _ in range(30):
        jobs.submit(a_job(model, count=3))
    statements: list[str] = []

    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(state.engine.sync_engine, "before_cursor_execute", note)
    page = client.get("/v1/jobs?limit=20").json()
    assert len(page["items"]) == 20
    assert {job["progress"]["items_total"] for job in page["items"]} == {3}
    assert [len(job["steps"]) for job in page["items"]] == [1] * 20
    assert [job["progress"]["queue_position"] for job in page["items"]] == list(range(30, 10, -1))
    assert len(statements) == 4, statements


def test_the_index_answers_a_page_far_down(engine: Engine, model: NewModel) -> None:
    _write(engine, model, count=5000, created_at=f"timestamptz '{START}' + n * interval '1 second'")
    after = JobPlace(created_at=START + timedelta(seconds=900), id=uuid.uuid4())
    query = page_of_jobs(JobFilter(), user_id="default", after=after, limit=51)
    compiled = query.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
    with engine.begin() as connection:
        connection.execute(text("ANALYZE jobs"))
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {compiled}").scalars())
    assert "ix_jobs_user_id_created_at_id" in plan
    assert "Sort" not in plan


def test_the_index_answers_the_page_of_one_model(engine: Engine, model: NewModel) -> None:
    _write(engine, a_model(engine, name="popular"), count=5000, created_at="now() - n * interval '1 second'")
    _write(engine, model, count=200, created_at=f"timestamptz '{START}' + n * interval '1 second'")
    query = page_of_jobs(JobFilter(model_ids=(model.id,)), user_id="default", after=None, limit=51)
    compiled = query.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True})
    with engine.begin() as connection:
        connection.execute(text("ANALYZE jobs"))
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {compiled}").scalars())
    assert "ix_jobs_model_id_created_at_id" in plan
    assert "Sort" not in plan


def test_the_newest_comes_first_and_pages_go_on_by_cursor(client: TestClient) -> None:
    posted = [client.post("/v1/jobs", json=GOOD).json() for _ in range(5)]
    newest_first = [job["id"] for job in reversed(posted)]
    seen: list[str] = []
    query = "limit=2"
    pages = 0
    while query:
        page = client.get(f"/v1/jobs?{query}").json()
        pages += 1
        seen += [job["id"] for job in page["items"]]
        query = f"limit=2&cursor={page['next_cursor']}" if page["next_cursor"] else ""
    assert (pages, seen) == (3, newest_first)
    assert client.get("/v1/jobs").json() == {
        "items": [client.get(job["links"]["self"]).json() for job in reversed(posted)],
        "next_cursor": None,
    }


def test_jobs_are_filtered_by_status_type_model_and_time(client: TestClient, engine: Engine, model: NewModel) -> None:
    other = a_model(engine, name="other")
    newer = a_model(engine, name="tiny", version="2")
    _write(engine, model, count=2, created_at=f"timestamptz '{START}' + n * interval '1 hour'", status="failed")
    _write(engine, other, count=1, created_at=f"timestamptz '{START}' + interval '2 hours'", status="succeeded")
    _write(engine, newer, count=1, created_at=f"timestamptz '{START}' + interval '3 hours'")
    newest, second, third, oldest = _ids(client, "")
    assert _ids(client, "status=failed") == [third, oldest]
    assert _ids(client, "status=failed&status=succeeded") == [second, third, oldest]
    assert _ids(client, "status=running") == []
    assert len(_ids(client, "type=generate")) == 4
    assert _ids(client, f"model_id={other.id}") == _ids(client, "model_id=other@1") == [second]
    assert _ids(client, "model_id=tiny") == [newest, third, oldest], "a name means all its versions"
    assert _ids(client, "model_id=tiny@2") == [newest]
    assert _ids(client, "created_after=2026-03-01T13:00:00Z") == [newest, second], "the time itself is not after it"
    assert _ids(client, "created_before=2026-03-01T13:00:00Z") == [oldest]
    for same_time in ("2026-03-01T14:00:00%2B01:00", "2026-03-01t13:00:00z", "2026-03-01T13:00:00.000000000Z"):
        assert _ids(client, f"created_before={same_time}") == [oldest]


def test_an_unknown_model_is_said_to_be_unknown(client: TestClient) -> None:
    for reference in ("sdxl-base", "tiny@9", str(uuid.uuid4())):
        error = assert_envelope(client.get(f"/v1/jobs?model_id={reference}"), 422, "unknown_model")
        assert error["message"] == f"No model '{reference}'. Installed: tiny."


def test_other_users_jobs_are_not_listed(client: TestClient, engine: Engine) -> None:
    client.post("/v1/jobs", json=GOOD)
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET user_id = 'somebody'"))
    assert _ids(client, "") == []


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("status=happy", "status"),
        ("type=paint", "type"),
        ("model_id=%00", "model_id"),
        ("model_id=", "model_id"),
        ("created_after=yesterday", "created_after"),
        ("created_after=2026-03-01T13:00:00", "created_after"),
        ("created_before=1e400", "created_before"),
        ("created_after=5", "created_after"),
        ("created_after=-5", "created_after"),
        ("created_before=1767225600", "created_before"),
        ("created_before=1767225600.5", "created_before"),
        ("created_after=2026-03-01", "created_after"),
        ("created_after=2026-03-01T13:00Z", "created_after"),
        ("created_after=2026-03-01%2013:00:00Z", "created_after"),
        ("created_after=2026-03-01T13:00:00%2B0100", "created_after"),
        ("created_after=2026-03-01T13:00:00,5Z", "created_after"),
        ("created_after=2026-02-30T13:00:00Z", "created_after"),
        ("created_after=2026-03-01T13:00:00+01:00", "created_after"),
        ("created_after=%20260301T130000Z", "created_after"),
        ("created_after=%D9%A2026-03-01T13:00:00Z", "created_after"),
    ],
)
def test_bad_filters_are_refused_by_path(client: TestClient, query: str, path: str) -> None:
    error = assert_envelope(client.get(f"/v1/jobs?{query}"), 422, "invalid_request")
    assert any(part["path"].startswith(f"query.{path}") for part in error["details"]["errors"]), error


@pytest.mark.parametrize("query", ["created_after=0001-01-01T00:00:00%2B23:59", "created_before=9999-12-31T23:59:59Z"])
def test_times_at_the_ends_of_the_calendar_are_times(client: TestClient, query: str) -> None:
    client.post("/v1/jobs", json=GOOD)
    assert len(_ids(client, query)) == 1


def test_a_made_up_cursor_is_refused(client: TestClient) -> None:
    job = client.post("/v1/jobs", json=GOOD).json()
    client.post("/v1/jobs", json=GOOD)
    cursor = client.get("/v1/jobs?limit=1").json()["next_cursor"]
    assert _ids(client, f"cursor={cursor}") == [job["id"]]
    for made_up in ("banana", cursor[:-2], cursor[::-1], "=", "%00"):
        assert_envelope(client.get(f"/v1/jobs?cursor={made_up}"), 400, "invalid_request")
    assert_envelope(client.get(f"{job['links']['artifacts']}?cursor={cursor}"), 400, "invalid_request")


def test_a_queued_job_is_cancelled_by_the_first_request_and_over_for_the_next(client: TestClient) -> None:
    job = client.post("/v1/jobs", json=GOOD).json()
    first = client.post(job["links"]["cancel"])
    assert (first.status_code, first.json()["status"]) == (202, "cancelled")
    assert first.json()["error"] is None
    second = client.post(job["links"]["cancel"])
    assert (second.status_code, second.json()) == (200, first.json())
    assert client.get(job["links"]["self"]).json() == first.json()


def test_a_running_job_is_cancelling_until_it_has_stopped(client: TestClient, engine: Engine) -> None:
    job = client.post("/v1/jobs", json=GOOD).json()
    claimed = claim(engine)
    assert claimed is not None
    AttemptStore(engine=engine, fence=claimed.fence).begin_item(ItemStarted(item_index=0, seed=1))
    for _ in range(2):
        answer = client.post(job["links"]["cancel"])
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")
        assert answer.json()["progress"]["stage"] == "encode_prompt"
    EndingStore(engine=engine).finalize(claimed.fence, lost=Failure("cancelled", "stopped"))
    answer = client.post(job["links"]["cancel"])
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert answer.json()["progress"]["stage"] is None, "nothing is being done any more"


def test_what_is_no_job_cannot_be_cancelled(client: TestClient) -> None:
    for id in (str(uuid7()), "17"):
        assert_envelope(client.post(f"/v1/jobs/{id}/cancel"), 404, "not_found")
    assert_envelope(client.get(f"/v1/jobs/{uuid7()}/cancel"), 405, "method_not_allowed")


def test_every_link_of_a_job_leads_somewhere(client: TestClient) -> None:
    links = client.post("/v1/jobs", json=GOOD).json()["links"]
    paths = client.get("/openapi.json").json()["paths"]
    for name, link in links.items():
        template = "/v1/jobs/{job_id}" + link.removeprefix(links["self"])
        assert template in paths, name


def test_the_routes_are_described(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    listing, cancel = paths["/v1/jobs"]["get"], paths["/v1/jobs/{job_id}/cancel"]["post"]
    assert (listing["operationId"], cancel["operationId"]) == ("list_jobs", "cancel_job")
    assert set(listing["responses"]) == {"200", "400", "403", "408", "422", "500", "503"}
    assert set(cancel["responses"]) >= {"200", "202", "404", "503"}
    names = {parameter["name"] for parameter in listing["parameters"]}
    assert names == {"status", "type", "error_code", "model_id", "created_after", "created_before", "limit", "cursor"}
