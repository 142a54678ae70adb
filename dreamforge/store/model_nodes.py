"""Which nodes hold which models, and which of them are busy: for who places a step."""

import uuid
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, and_, delete, func, or_, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from dreamforge.jobs.job import Lane, StepStatus
from dreamforge.store.companions import models_of_step
from dreamforge.store.engine import database_errors
from dreamforge.store.tables import ModelNodeRow, ModelRow, StepRow


@dataclass(frozen=True)
class Keeper:
    """A node as those name it that keep models: an address, which several may share, and Ray's id at the last use.

    ``place`` names the folder that they keep them in, whatever Ray calls the node this time.
    """

    place: uuid.UUID
    node: str
    node_id: str | None


@dataclass(frozen=True)
class Holding:
    """How much of what a step draws with a node has: ``size_bytes``."""

    node: str
    node_id: str | None
    size_bytes: int


class ModelNodeStore:
    """The nodes' own word on what they hold. Raises ``DatabaseUnavailable``."""

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine

    def note_use(self, keeper: Keeper, used: Collection[uuid.UUID], *, verified: Collection[uuid.UUID] = ()) -> None:
        """Write that the node holds these models, and uses them now; of ``verified`` that they were just checked.

        One that has left the registry is passed over.
        """
        # Held, so that it does not leave the registry before this is written.
        there = (
            select(ModelRow.id)
            .where(ModelRow.id.in_(used))
            .order_by(ModelRow.id)
            .with_for_update(read=True, key_share=True)
        )
        with database_errors(), self._engine.begin() as connection:
            found = connection.scalars(there).all()
            _follow(connection, keeper)
            for model_id in found:
                values = {"node": keeper.node, "node_id": keeper.node_id, "last_used_at": func.now()}
                if model_id in verified:
                    values["verified_at"] = func.now()
                statement = insert(ModelNodeRow).values(model_id=model_id, place=keeper.place, **values)
                connection.execute(statement.on_conflict_do_update(index_elements=["model_id", "place"], set_=values))

    def forget(self, place: uuid.UUID, models: Collection[uuid.UUID]) -> None:
        """Write that the node does not hold these any more."""
        gone = delete(ModelNodeRow).where(ModelNodeRow.place == place, ModelNodeRow.model_id.in_(models))
        with database_errors(), self._engine.begin() as connection:
            connection.execute(gone)

    def holdings(self, step_id: uuid.UUID) -> list[Holding]:
        """The nodes that hold what this step draws with, or some of it."""
        with database_errors(), self._engine.connect() as connection:
            models = models_of_step(connection, step_id)
            held = (
                select(ModelNodeRow.node, ModelNodeRow.node_id, func.sum(ModelRow.size_bytes).label("size_bytes"))
                .join(ModelRow, ModelRow.id == ModelNodeRow.model_id)
                .where(ModelNodeRow.model_id.in_(models))
                .group_by(ModelNodeRow.place, ModelNodeRow.node, ModelNodeRow.node_id)
            )
            rows = connection.execute(held).all()
        return [Holding(row.node, row.node_id, int(row.size_bytes)) for row in rows]

    def running_steps(self) -> dict[uuid.UUID, str | None]:
        """The steps that are running on GPUs, and on which of Ray's nodes; None for one that has not arrived yet."""
        has_arrived = StepRow.metadata_json["attempt"].as_integer() == StepRow.attempt
        node_id = func.nullif(StepRow.metadata_json["node_id"].as_string(), "")
        query = select(StepRow.id, has_arrived.label("has_arrived"), node_id.label("node_id")).where(
            StepRow.lane == Lane.GPU, StepRow.status == StepStatus.RUNNING
        )
        with database_errors(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return {row.id: row.node_id if row.has_arrived else None for row in rows}


def _follow(connection: Connection, keeper: Keeper) -> None:
    """Have the rows of the folder name its node as it is called now, and forget what the node kept in another one."""
    is_here = ModelNodeRow.place == keeper.place
    is_renamed = and_(is_here, ModelNodeRow.node_id.is_distinct_from(keeper.node_id))
    # Of a node without a name, outside of Ray, nothing equals it.
    is_elsewhere = and_(~is_here, ModelNodeRow.node_id == keeper.node_id)
    key = (ModelNodeRow.model_id, ModelNodeRow.place)
    # All steps of a node that was started anew come here at once: each has them in the same order, and before its own.
    stale = select(*key).where(or_(is_renamed, is_elsewhere)).order_by(*key).with_for_update()
    rows = [tuple(row) for row in connection.execute(stale)]
    if rows:
        is_stale = tuple_(*key).in_(rows)
        connection.execute(delete(ModelNodeRow).where(is_stale, ~is_here))
        renamed = update(ModelNodeRow).where(is_stale, is_here)
        connection.execute(renamed.values(node=keeper.node, node_id=keeper.node_id))
