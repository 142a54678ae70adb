"""Leases on what is written into a folder of models, which several processes and nodes may share.

Postgres keeps them: file locks do nothing at all on some network file systems. Its clock alone counts.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Engine, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from dreamforge.errors import LeaseLost
from dreamforge.store.engine import database_errors
from dreamforge.store.tables import DownloadRow

LEASE_SECONDS = 20.0


@dataclass(frozen=True)
class DownloadLease:
    """A lease that was taken on ``key`` in the folder ``place``: whoever has its token may write."""

    place: uuid.UUID
    key: str
    token: uuid.UUID


@dataclass(frozen=True)
class Holder:
    """Who has the lease instead, and how far they have come. ``size`` is None where it is not known."""

    owner: str
    bytes_done: int
    size: int | None


class DownloadLeases:
    """Leases that end by themselves, ``seconds`` after their holder's last sign of life."""

    def __init__(
        self, *, engine: Engine, seconds: float = LEASE_SECONDS, new_token: Callable[[], uuid.UUID] = uuid.uuid4
    ) -> None:
        self._engine = engine
        self._new_token = new_token
        self.seconds = seconds

    def take(self, place: uuid.UUID, key: str, *, owner: str, size: int | None = None) -> DownloadLease | Holder:
        """Take the lease, also of one whose time has run out; else who has it."""
        lease = DownloadLease(place=place, key=key, token=self._new_token())
        values = {
            "owner": owner,
            "lease_token": lease.token,
            "lease_expires_at": self._end(),
            "size": size,
            "bytes_done": 0,
            "updated_at": func.clock_timestamp(),
        }
        statement = insert(DownloadRow).values(place=place, key=key, **values)
        statement = statement.on_conflict_do_update(
            index_elements=["place", "key"], set_=values, where=DownloadRow.lease_expires_at <= func.clock_timestamp()
        )
        query = select(DownloadRow.owner, DownloadRow.bytes_done, DownloadRow.size).where(*_is(place, key))
        with database_errors(), self._engine.begin() as connection:
            while True:
                if connection.execute(statement.returning(DownloadRow.lease_token)).one_or_none():
                    return lease
                # It may have been given back in between.
                if (other := connection.execute(query).one_or_none()) is not None:
                    return Holder(owner=other.owner, bytes_done=other.bytes_done, size=other.size)

    def renew(self, lease: DownloadLease, *, bytes_done: int = 0, size: int | None = None) -> None:
        """Give a sign of life, and say how far it has come. Raises ``LeaseLost`` when somebody else has it."""
        values = {
            "lease_expires_at": self._end(),
            "bytes_done": bytes_done,
            "size": size,
            "updated_at": func.clock_timestamp(),
        }
        with database_errors(), self._engine.begin() as connection:
            if not connection.execute(update(DownloadRow).where(*_holds(lease)).values(values)).rowcount:
                raise LeaseLost(f"{lease.key} was taken over.")

    def give_back(self, lease: DownloadLease) -> None:
        """End the lease now. One that was lost is no trouble."""
        with database_errors(), self._engine.begin() as connection:
            connection.execute(delete(DownloadRow).where(*_holds(lease)))

    def live(self, place: uuid.UUID) -> set[str]:
        """The keys in this folder that somebody holds the lease of."""
        query = select(DownloadRow.key).where(
            DownloadRow.place == place, DownloadRow.lease_expires_at > func.clock_timestamp()
        )
        with database_errors(), self._engine.connect() as connection:
            return set(connection.scalars(query))

    def forget_ended(self, place: uuid.UUID) -> None:
        """Delete what the leases of the dead have left."""
        ended = delete(DownloadRow).where(
            DownloadRow.place == place, DownloadRow.lease_expires_at <= func.clock_timestamp()
        )
        with database_errors(), self._engine.begin() as connection:
            connection.execute(ended)

    def _end(self) -> ColumnElement[object]:
        return func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, self.seconds)


def _is(place: uuid.UUID, key: str) -> tuple[ColumnElement[bool], ...]:
    return DownloadRow.place == place, DownloadRow.key == key


def _holds(lease: DownloadLease) -> tuple[ColumnElement[bool], ...]:
    return *_is(lease.place, lease.key), DownloadRow.lease_token == lease.token
