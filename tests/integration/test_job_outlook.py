"""What a job that is not over says of its future: its place in the queue, and when it will be done."""

import json
import uuid
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event, text

from dreamforge.api.state import ApiState
from dreamforge.jobs.events import ItemProgress, ItemStarted
from dreamforge.jobs.job import Priority
from dreamforge.store import eta, queue_positions
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.claims import ClaimStore
from dreamforge.store.models import NewModel
from tests.integration.door import GOOD
from tests.integration.factories import Jobs, a_job, a_model, an_artifact, claim, claimed

_KIND = {"width": 64, "height": 64, "steps": 2}


def _position(jobs: Jobs, id: uuid.UUID) -> int | None:
    return jobs.find(id).queue_position


def _finished(engine: Engine, model: NewModel, *, seconds: list[float], **params: Any) -> None:
    """A succeeded job whose images took so long."""
    with engine.begin() as connection:
        values = {"model": model.id, "params": a_job(model, **params).params, "count": len(seconds)}
        job = connection.execute(
            text(
                "INSERT INTO jobs (id, type, status, priority, model_id, count, params_json, options_json,"
                " metadata_json, request_id) VALUES (gen_random_uuid(), 'generate', 'succeeded', 'normal', :model,"
                " :count, CAST(:params AS jsonb), '{}', '{}', 'test') RETURNING id"
            ),
            {**values, "params": json.dumps(values["params"])},
        ).scalar_one()
        step = connection.execute(
            text(
                "INSERT INTO steps (id, job_id, name, position, lane, status)"
                " VALUES (gen_random_uuid(), :job, 'generate', 0, 'gpu', 'succeeded') RETURNING id"
            ),
            {"job": job},
        ).scalar_one()
        for index, length in enumerate(seconds):
            connection.execute(
                text(
                    "INSERT INTO items (step_id, item_index, status, progress, started_at, finished_at)"
                    " VALUES (:step, :index, 'succeeded', 1, now() - make_interval(secs => :length), now())"
                ),
                {"step": step, "index": index, "length": length},
            )


def test_positions_are_the_order_in_which_jobs_are_claimed(engine: Engine, jobs: Jobs, model: NewModel) -> None:
    submitted = []
    for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.NORMAL, Priority.HIGH, Priority.LOW):
        new = a_job(model, priority=priority)
        assert jobs.submit(new).queue_position is not None
        submitted.append(new.id)
    # Of one moment: then the id decides.
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET created_at = '2026-03-01' WHERE priority = 'normal'"))
    told = sorted(submitted, key=lambda id: _position(jobs, id) or 0)
    assert [_position(jobs, id) for id in told] == [1, 2, 3, 4, 5, 6]
    for expected in told:
        assert _position(jobs, expected) == 1
        assert claimed(engine).fence.job_id == expected
        assert _position(jobs, expected) is None, "it waits no more"


def test_what_is_not_due_has_no_place_and_takes_none(engine: Engine, jobs: Jobs, model: NewModel) -> None:
    cancelled, later, other_lane, last = (a_job(model) for _ in range(4))
    for new in (cancelled, later, other_lane, last):
        jobs.submit(new)
    assert _position(jobs, last.id) == 4
    jobs.cancel(cancelled.id)
    with engine.begin() as connection:
        at = text("UPDATE steps SET next_attempt_at = now() + interval '5 minutes' WHERE job_id = :id")
        connection.execute(at, {"id": later.id})
        connection.execute(text("UPDATE steps SET lane = 'io' WHERE job_id = :id"), {"id": other_lane.id})
    assert [_position(jobs, new.id) for new in (cancelled, later, other_lane, last)] == [None, None, None, 1]


def test_a_step_that_was_put_back_stands_before_those_behind_it(engine: Engine, jobs: Jobs, model: NewModel) -> None:
    first, second = a_job(model), a_job(model)
    for new in (first, second):
        jobs.submit(new)
    fence = claimed(engine).fence
    assert _position(jobs, second.id) == 1
    ClaimStore(engine=engine).put_back(fence)
    assert _position(jobs, second.id) == 2
    assert _position(jobs, first.id) is None, "it is running, as far as its client is told"


def test_a_retried_job_stands_where_its_age_puts_it(jobs: Jobs, model: NewModel) -> None:
    first, second = a_job(model), a_job(model)
    for new in (first, second):
        jobs.submit(new)
    jobs.cancel(first.id)
    assert _position(jobs, second.id) == 1
    jobs.retry(first.id)
    assert (_position(jobs, first.id), _position(jobs, second.id)) == (1, 2)


def test_a_list_tells_positions_too(client: TestClient) -> None:
    created = [client.post("/v1/jobs", json=GOOD).json() for _ in range(3)]
    assert [job["progress"]["queue_position"] for job in created] == [1, 2, 3]
    listed = client.get("/v1/jobs").json()["items"]
    assert [job["progress"]["queue_position"] for job in listed] == [3, 2, 1]
    assert {job["progress"]["eta_seconds"] for job in listed} == {None}


def test_a_long_queue_is_counted_so_far_and_by_its_index(engine: Engine, jobs: Jobs, model: NewModel) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "WITH new AS (INSERT INTO jobs (id, type, status, priority, model_id, count, params_json, options_json,"
                " metadata_json, request_id, created_at) SELECT gen_random_uuid(), 'generate', 'queued',"
                " CASE n % 3 WHEN 0 THEN 'low' WHEN 1 THEN 'normal' ELSE 'high' END, :model, 1, '{}', '{}', '{}',"
                " 'test', now() - n * interval '1 second' FROM generate_series(1, 6000) AS n RETURNING id)"
                " INSERT INTO steps (id, job_id, name, position, lane, status)"
                " SELECT gen_random_uuid(), id, 'generate', 0, 'gpu', 'queued' FROM new"
            ),
            {"model": model.id},
        )
        connection.execute(text("ANALYZE jobs, steps"))
        query = f"EXPLAIN {queue_positions.PLACES.text}"
        for name, value in (("lane", "'gpu'"), ("farthest", "1000"), ("job_ids", f"ARRAY['{uuid.uuid4()}'::uuid]")):
            query = query.replace(f":{name}", value)
        plan = "\n".join(connection.exec_driver_sql(query).scalars())
    assert "ix_jobs_claim_order" in plan
    assert "Sort" not in plan
    far = a_job(model, priority=Priority.LOW)
    near = a_job(model, priority=Priority.HIGH)
    assert jobs.submit(far).queue_position is None
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM jobs WHERE priority = 'high' AND created_at < now() - interval '99 s'"))
    assert jobs.submit(near).queue_position is not None


def _running(engine: Engine, jobs: Jobs, model: NewModel, *, count: int = 4) -> tuple[uuid.UUID, AttemptStore]:
    new = a_job(model, count=count)
    jobs.submit(new)
    return new.id, AttemptStore(engine=engine, fence=claimed(engine).fence)


def _draw_for(engine: Engine, attempt: AttemptStore, index: int, *, seconds: float, batch_size: int = 1) -> None:
    attempt.begin_item(ItemStarted(item_index=index, seed=index))
    attempt.publish(replace(an_artifact(index), metadata={"batch_size": batch_size}))
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE items SET started_at = finished_at - make_interval(secs => :seconds)"
                " WHERE item_index = :index AND step_id IN (SELECT id FROM steps WHERE status = 'running')"
            ),
            {"seconds": seconds, "index": index},
        )


def test_nothing_is_said_while_nothing_was_measured(engine: Engine, jobs: Jobs, model: NewModel) -> None:
    id, attempt = _running(engine, jobs, model)
    assert jobs.find(id).eta_seconds is None
    attempt.begin_item(ItemStarted(item_index=0, seed=0))
    attempt.record_progress(ItemProgress(item_index=0, stage="denoise", stage_progress=0.5, progress=0.5))
    assert jobs.find(id).eta_seconds is None


def test_a_job_goes_by_its_own_images(engine: Engine, jobs: Jobs, model: NewModel) -> None:
    _finished(engine, model, seconds=[99.0] * 5)
    id, attempt = _running(engine, jobs, model)
    _draw_for(engine, attempt, 0, seconds=10)
    assert jobs.find(id).eta_seconds == pytest.approx(30)
    attempt.begin_item(ItemStarted(item_index=1, seed=1))
    attempt.record_progress(ItemProgress(item_index=1, stage="denoise", stage_progress=0.5, progress=0.5))
    assert jobs.find(id).eta_seconds == pytest.approx(25)
    _draw_for(engine, attempt, 1, seconds=20)
    assert jobs.find(id).eta_seconds == pytest.approx(2 * 15)
    for index in (2, 3):
        _draw_for(engine, attempt, index, seconds=15)
    assert jobs.find(id).eta_seconds == 0


def test_of_images_that_were_drawn_together_each_counts_its_share(engine: Engine, jobs: Jobs, model: NewModel) -> None:
    id, attempt = _running(engine, jobs, model)
    for index in (0, 1):
        _draw_for(engine, attempt, index, seconds=10, batch_size=2)
    assert jobs.find(id).eta_seconds == pytest.approx(2 * 10 / 2)


def test_before_its_first_image_it_goes_by_the_median_of_jobs_like_it(
    engine: Engine, jobs: Jobs, model: NewModel
) -> None:
    _finished(engine, model, seconds=[4.0, 5.0, 900.0])
    _finished(engine, model, seconds=[6.0, 5.0])
    other = a_model(engine, name="other")
    for kind in ({"width": 128}, {"height": 128}, {"steps": 50}, {"preset": "low_vram"}):
        _finished(engine, model, seconds=[100.0] * 5, **kind)
    _finished(engine, other, seconds=[100.0] * 5)
    id, _ = _running(engine, jobs, model)
    assert jobs.find(id).eta_seconds == pytest.approx(4 * 5)


def test_jobs_that_wait_are_put_back_or_are_being_cancelled_have_none(
    engine: Engine, jobs: Jobs, model: NewModel
) -> None:
    _finished(engine, model, seconds=[5.0])
    id, _ = _running(engine, jobs, model)
    waiting = a_job(model)
    jobs.submit(waiting)
    assert jobs.find(waiting.id).eta_seconds is None
    with engine.begin() as connection:
        connection.execute(text("UPDATE steps SET status = 'queued' WHERE job_id = :id"), {"id": id})
    assert jobs.find(id).eta_seconds is None
    with engine.begin() as connection:
        connection.execute(text("UPDATE steps SET status = 'running' WHERE job_id = :id"), {"id": id})
    assert jobs.find(id).eta_seconds is not None
    jobs.cancel(id)
    assert jobs.find(id).eta_seconds is None


def test_a_model_that_was_removed_gives_none_and_no_error(engine: Engine, jobs: Jobs, model: NewModel) -> None:
    _finished(engine, model, seconds=[5.0])
    id, _ = _running(engine, jobs, model)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM models"))
    assert jobs.find(id).eta_seconds is None


def test_an_eta_is_told_by_the_route_to_a_tenth(client: TestClient, engine: Engine, model: NewModel) -> None:
    _finished(engine, model, seconds=[1.2345])
    job = client.post("/v1/jobs", json={**GOOD, "count": 3}).json()
    assert claim(engine) is not None
    progress = client.get(job["links"]["self"]).json()["progress"]
    assert (progress["eta_seconds"], progress["queue_position"]) == (3.7, None)


def test_one_job_is_told_in_four_statements(client: TestClient, state: ApiState, engine: Engine) -> None:
    job = client.post("/v1/jobs", json=GOOD).json()
    statements: list[str] = []

    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(state.engine.sync_engine, "before_cursor_execute", note)
    for is_running in (False, True):
        if is_running:
            claimed(engine)
        statements.clear()
        client.get(job["links"]["self"])
        assert len(statements) == 4


def test_the_measurements_are_found_by_indices(engine: Engine, model: NewModel) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "WITH new AS (INSERT INTO jobs (id, type, status, priority, model_id, count, params_json, options_json,"
                " metadata_json, request_id, created_at) SELECT gen_random_uuid(), 'generate', 'succeeded', 'normal',"
                " :model, 1, CAST(:params AS jsonb), '{}', '{}', 'test', now() - n * interval '1 second'"
                " FROM generate_series(1, 5000) AS n RETURNING id), step AS ("
                " INSERT INTO steps (id, job_id, name, position, lane, status)"
                " SELECT gen_random_uuid(), id, 'generate', 0, 'gpu', 'succeeded' FROM new RETURNING id)"
                " INSERT INTO items (step_id, item_index, status, started_at, finished_at)"
                " SELECT id, n, 'succeeded', now() - interval '5 s', now() FROM step, generate_series(0, 3) AS n"
            ),
            {"model": model.id, "params": json.dumps(_KIND)},
        )
        connection.execute(text("ANALYZE jobs, steps, items"))
        query = f"EXPLAIN {eta.ETA.text}"
        values = {"recent_jobs": "200", "samples": "5", "job_ids": f"ARRAY['{uuid.uuid4()}'::uuid]"}
        for name, value in values.items():
            query = query.replace(f":{name}", value)
        plan = "\n".join(connection.exec_driver_sql(query).scalars())
    assert "ix_jobs_status_created_at" in plan
    for table in ("jobs", "steps", "items"):
        assert f"Seq Scan on {table}" not in plan, plan
