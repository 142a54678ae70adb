"""Images and their rows compared: an object that no row leads to is nobody's, a row without its object is a loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice

from dreamforge.blobs import Blobs, StoredObject
from dreamforge.store.artifact_keys import ArtifactKeys

PREFIX = "dreamforge/"
LEAST_AGE = timedelta(hours=24)
"""Younger ones may be waiting for their rows."""
_PAGE = 1000


@dataclass(frozen=True)
class Found:
    """Objects in all, ``old`` enough to go, ``orphans`` among those without a row, and ``missing`` keys of rows."""

    objects: int
    old: int
    orphans: tuple[StoredObject, ...]
    missing: tuple[str, ...]

    @property
    def orphan_bytes(self) -> int:
        """The size of the orphans."""
        return sum(orphan.size_bytes for orphan in self.orphans)

    @property
    def is_odd(self) -> bool:
        """True where most of the old ones would go: more likely the database is not the one that they belong to."""
        return len(self.orphans) * 2 > self.old


def find(*, blobs: Blobs, keys: ArtifactKeys, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Found:
    """Compare. Raises ``StorageUnavailable`` and ``DatabaseUnavailable``."""
    # A store lets nobody in whose clock is far from its own, by which objects are as old as they are.
    oldest = now() - LEAST_AGE
    seen: set[str] = set()
    old = 0
    orphans: list[StoredObject] = []
    listed = blobs.list(PREFIX)
    while page := list(islice(listed, _PAGE)):
        seen.update(found.key for found in page)
        aged = [found for found in page if found.changed_at < oldest]
        old += len(aged)
        orphans += _without_row(aged, keys)
    # A row is written after its object, so both may have come after the look at the objects; and both may go meanwhile.
    missing = [key for key in keys.all() if key not in seen and not blobs.exists(key)]
    still = keys.known(missing)
    return Found(
        objects=len(seen), old=old, orphans=tuple(orphans), missing=tuple(key for key in missing if key in still)
    )


def remove(found: Found, *, blobs: Blobs, keys: ArtifactKeys) -> int:
    """Remove the orphans that still are some; how many. Rows are never touched.

    Raises ``StorageUnavailable`` and ``DatabaseUnavailable``; what was removed by then was nobody's.
    """
    removed = 0
    orphans = iter(found.orphans)
    while page := list(islice(orphans, _PAGE)):
        gone = _without_row(page, keys)
        blobs.remove(orphan.key for orphan in gone)
        removed += len(gone)
    return removed


def _without_row(objects: Sequence[StoredObject], keys: ArtifactKeys) -> list[StoredObject]:
    known = keys.known([found.key for found in objects])
    return [found for found in objects if found.key not in known]
