"""The keys of images, for whoever compares them with what is in the object store."""

from collections.abc import Collection, Iterator
from itertools import islice

from sqlalchemy import Engine, select

from dreamforge.store.engine import database_errors
from dreamforge.store.tables import ArtifactRow

_PAGE = 1000


class ArtifactKeys:
    """Raises ``DatabaseUnavailable`` when Postgres is away."""

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine

    def known(self, keys: Collection[str]) -> set[str]:
        """Those of ``keys`` that an image has."""
        asked = iter(keys)
        found: set[str] = set()
        while page := list(islice(asked, _PAGE)):
            with database_errors(), self._engine.connect() as connection:
                found.update(connection.scalars(select(ArtifactRow.s3_key).where(ArtifactRow.s3_key.in_(page))))
        return found

    def all(self) -> Iterator[str]:
        """Every image's key, in pages as they are read."""
        after = ""
        query = select(ArtifactRow.s3_key).order_by(ArtifactRow.s3_key).limit(_PAGE)
        while True:
            with database_errors(), self._engine.connect() as connection:
                keys = connection.scalars(query.where(ArtifactRow.s3_key > after)).all()
            yield from keys
            if len(keys) < _PAGE:
                return
            after = keys[-1]
