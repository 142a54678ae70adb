"""What nodes say of the models that they hold, and what is made of it when a step is placed."""

import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, event, text

from dreamforge.dispatch.affinity import Affinity
from dreamforge.dispatch.cluster import GpuNode
from dreamforge.jobs.events import StepStarted
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.claims import Claim
from dreamforge.store.model_nodes import Holding, Keeper, ModelNodeStore
from dreamforge.store.models import NewModel, NewModelFile
from tests.integration.factories import Jobs, a_job, a_model, at_once, claimed, is_lock_waited_for
from tests.service import wait_for

ONE = Keeper(uuid.uuid4(), "10.0.0.1", "ray-1")
TWO = Keeper(uuid.uuid4(), "10.0.0.2", "ray-2")
NODES = [GpuNode("ray-1", "10.0.0.1", gpus=1), GpuNode("ray-2", "10.0.0.2", gpus=1)]


@pytest.fixture
def store(engine: Engine) -> ModelNodeStore:
    """The store of a supervisor, and of the dispatcher."""
    return ModelNodeStore(engine=engine)


def _sized(size: int) -> tuple[NewModelFile, ...]:
    return (NewModelFile(path="x.safetensors", size=size, sha256="ab" * 32),)


def _claimed(engine: Engine, jobs: Jobs, model: NewModel, **params: object) -> Claim:
    jobs.submit(a_job(model, **params))  # type: ignore[arg-type] - all are params
    return claimed(engine)


def _arrive(engine: Engine, claim: Claim, node: str) -> None:
    metadata = {"node_id": node, "supervisor_pid": 1}
    attempt = AttemptStore(engine=engine, fence=claim.fence)
    attempt.arrive(metadata)
    attempt.start(StepStarted(step="generate", attempt=claim.fence.attempt, node=node), metadata=metadata)


def _rows(engine: Engine) -> list[tuple[uuid.UUID, str, str]]:
    with engine.connect() as connection:
        query = text("SELECT model_id, node, node_id FROM model_nodes ORDER BY node, node_id")
        return [(row.model_id, row.node, row.node_id) for row in connection.execute(query)]


def _times(engine: Engine) -> tuple[object, object]:
    with engine.connect() as connection:
        row = connection.execute(text("SELECT verified_at, last_used_at FROM model_nodes")).one()
        return row.verified_at, row.last_used_at


def test_a_use_is_written_and_what_is_verified_is_told_apart(engine: Engine, store: ModelNodeStore) -> None:
    model = a_model(engine)
    store.note_use(ONE, [model.id])
    verified, used = _times(engine)
    store.note_use(ONE, [model.id])
    assert _times(engine)[0] == verified
    assert _times(engine)[1] != used
    store.note_use(ONE, [model.id], verified=[model.id])
    assert _times(engine)[0] != verified
    store.forget(ONE.place, [model.id])
    assert _rows(engine) == []


def test_a_model_that_has_left_the_registry_is_passed_over(engine: Engine, store: ModelNodeStore) -> None:
    model = a_model(engine)
    store.note_use(ONE, [uuid.uuid4(), model.id])
    assert _rows(engine) == [(model.id, "10.0.0.1", "ray-1")]


def test_a_node_that_was_started_anew_is_the_same_and_one_with_a_new_folder_has_lost_the_old(
    engine: Engine, store: ModelNodeStore
) -> None:
    one, two = a_model(engine), a_model(engine)
    store.note_use(ONE, [one.id, two.id])
    again = Keeper(ONE.place, "10.0.0.9", "ray-9")
    store.note_use(again, [one.id])
    assert {row[1:] for row in _rows(engine)} == {("10.0.0.9", "ray-9")}
    store.note_use(Keeper(uuid.uuid4(), "10.0.0.9", "ray-9"), [two.id])
    assert _rows(engine) == [(two.id, "10.0.0.9", "ray-9")]


def test_several_steps_of_a_node_write_at_once(engine: Engine, store: ModelNodeStore) -> None:
    models = [a_model(engine).id for _ in range(4)]

    def note(order: Sequence[uuid.UUID]) -> None:
        for _ in range(20):
            store.note_use(ONE, order)

    answers = at_once(*(lambda order=order: note(order) for order in (models, models[::-1], models[2:] + models[:2])))
    assert answers == [None] * 3


@contextmanager
def _meeting(engine: Engine, *, before: str) -> Generator[None]:
    """Whoever comes to such a statement goes on once another one has too, or waits for what the first one holds."""
    there: list[str] = []

    def hold_up(_: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith(before):
            there.append(statement)
            wait_for(lambda: len(there) > 1 or is_lock_waited_for(engine), what="the other one")

    event.listen(engine, "before_cursor_execute", hold_up)
    yield
    event.remove(engine, "before_cursor_execute", hold_up)


def test_steps_that_begin_at_once_on_a_node_that_was_started_anew_do_not_block_each_other(
    engine: Engine, store: ModelNodeStore
) -> None:
    one, two = a_model(engine).id, a_model(engine).id
    store.note_use(ONE, [one, two])
    again = Keeper(ONE.place, "10.0.0.1", "ray-9")
    with _meeting(engine, before="UPDATE model_nodes"):
        answers = at_once(lambda: store.note_use(again, [one]), lambda: store.note_use(again, [two]))
    assert answers == [None, None]
    assert {row[1:] for row in _rows(engine)} == {("10.0.0.1", "ray-9")}


def test_a_node_counts_by_all_that_a_step_draws_with(engine: Engine, jobs: Jobs, store: ModelNodeStore) -> None:
    checkpoint = a_model(engine, files=_sized(7000))
    lora = a_model(engine, name="grain", kind="lora", files=_sized(200))
    store.note_use(ONE, [checkpoint.id])
    store.note_use(TWO, [checkpoint.id, lora.id])
    claim = _claimed(engine, jobs, checkpoint, loras=[{"id": "grain@1", "weight": 1.0}])
    found = store.holdings(claim.fence.step_id)
    assert sorted(found, key=lambda held: held.node) == [
        Holding("10.0.0.1", "ray-1", 7000),
        Holding("10.0.0.2", "ray-2", 7200),
    ]
    assert Affinity(store=store, nodes=lambda: NODES).choose(claim.fence.step_id) == "ray-2"


def test_a_step_that_was_sent_to_a_node_counts_before_it_has_arrived_there(
    engine: Engine, jobs: Jobs, store: ModelNodeStore
) -> None:
    model = a_model(engine)
    affinity = Affinity(store=store, nodes=lambda: NODES)
    first, second, third = (_claimed(engine, jobs, model) for _ in range(3))
    assert affinity.choose(first.fence.step_id) is None, "nobody has it yet"
    _arrive(engine, first, "ray-1")
    store.note_use(ONE, [model.id])
    assert affinity.choose(second.fence.step_id) is None, "the one that has it is busy"
    store.note_use(TWO, [model.id])
    assert affinity.choose(second.fence.step_id) == "ray-2"
    assert affinity.choose(third.fence.step_id) is None, "the second is on its way there"
    # It went elsewhere, or has ended: its place is free again.
    with engine.begin() as connection:
        connection.execute(text("UPDATE steps SET status = 'succeeded' WHERE id = :id"), {"id": second.fence.step_id})
    assert affinity.choose(third.fence.step_id) == "ray-2"


def test_an_attempt_that_is_over_is_nowhere(engine: Engine, jobs: Jobs, store: ModelNodeStore) -> None:
    claim = _claimed(engine, jobs, a_model(engine))
    _arrive(engine, claim, "ray-1")
    assert store.running_steps() == {claim.fence.step_id: "ray-1"}
    with engine.begin() as connection:
        connection.execute(text("UPDATE steps SET attempt = attempt + 1"))
    assert store.running_steps() == {claim.fence.step_id: None}


def test_while_the_database_is_away_nothing_is_preferred(engine: Engine, store: ModelNodeStore) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE model_nodes RENAME TO gone"))
    try:
        assert Affinity(store=store, nodes=lambda: NODES).choose(uuid.uuid4()) is None
    finally:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE gone RENAME TO model_nodes"))
