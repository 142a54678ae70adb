"""Who is alive, by the database's clock."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from dreamforge.store.engine import database_errors, in_time
from dreamforge.store.tables import HeartbeatRow


@dataclass(frozen=True)
class Heartbeat:
    """The last sign of life of one process or node; ``age_seconds`` by the database's clock."""

    id: str
    kind: str
    node: str
    age_seconds: float
    info: dict[str, Any]


class HeartbeatStore:
    """Writes signs of life."""

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine

    def beat(self, *, id: str, kind: str, node: str, info: dict[str, Any]) -> None:
        """Say that ``id`` is alive now."""
        values = {"kind": kind, "node": node, "info_json": info, "seen_at": func.now()}
        statement = (
            insert(HeartbeatRow).values(id=id, **values).on_conflict_do_update(index_elements=["id"], set_=values)
        )
        with database_errors(), self._engine.begin() as connection:
            connection.execute(statement)


async def read_heartbeats(engine: AsyncEngine) -> list[Heartbeat]:
    """Every heartbeat of the last hour, newest first."""
    age = func.extract("epoch", func.now() - HeartbeatRow.seen_at).label("age")
    query = select(HeartbeatRow, age).where(age < 3600).order_by(age)
    async with in_time(), engine.connect() as connection:
        rows = (await connection.execute(query)).all()
    return [Heartbeat(row.id, row.kind, row.node, float(row.age), row.info_json) for row in rows]
