"""Which databases Dream Forge can live in."""

from dataclasses import replace
from typing import Any

import pytest

from dreamforge.store.inspection import DatabaseFacts, KnownSchemas, known_schemas, objection

KNOWN = KnownSchemas(revisions=frozenset({"0001", "0002"}), newest="0002")
EMPTY = DatabaseFacts(
    version=150014,
    encoding="UTF8",
    is_read_only=False,
    user="painter",
    schema="public",
    may_create=True,
    revision=None,
    tables=(),
    foreign_tables=(),
    closed_tables=(),
)
MIGRATED = replace(EMPTY, revision="0002", tables=("jobs", "steps"))


@pytest.mark.parametrize(
    "facts",
    [
        EMPTY,
        MIGRATED,
        replace(EMPTY, version=150000),
        replace(EMPTY, version=180004),
        replace(MIGRATED, revision="0001"),
        # What a database administrator has migrated is only used.
        replace(MIGRATED, may_create=False, foreign_tables=("jobs", "steps")),
    ],
)
def test_a_database_that_will_do(facts: DatabaseFacts) -> None:
    assert objection(facts, KNOWN) is None


@pytest.mark.parametrize(
    ("facts", "changes", "words"),
    [
        (EMPTY, {"version": 149999}, "version 14.9999, and 15 is the oldest"),
        (MIGRATED, {"version": 90624}, "version 9.624, and 15 is the oldest"),
        (EMPTY, {"encoding": "SQL_ASCII"}, "encoding is SQL_ASCII"),
        (MIGRATED, {"is_read_only": True}, "read-only"),
        (MIGRATED, {"revision": "0003"}, "'0003' is unknown here, so a newer Dream Forge has migrated it"),
        (MIGRATED, {"closed_tables": ("steps",)}, "'painter' may not read and write its table steps"),
        (EMPTY, {"tables": ("jobs",)}, "another program's table jobs"),
        (MIGRATED, {"revision": "0001", "foreign_tables": ("jobs", "steps")}, "does not own its tables jobs, steps"),
        (EMPTY, {"schema": "", "may_create": False}, "no schema"),
        (EMPTY, {"may_create": False}, "'painter' may not create tables in its schema 'public'"),
        (MIGRATED, {"revision": "0001", "may_create": False}, "may not create tables"),
    ],
)
def test_a_database_that_will_not_do_and_why(facts: DatabaseFacts, changes: dict[str, Any], words: str) -> None:
    found = objection(replace(facts, **changes), KNOWN)
    assert found is not None
    assert words in found


def test_what_lies_in_the_folder_of_migrations_is_known() -> None:
    known = known_schemas()
    assert known.newest in known.revisions
    assert "0001" in known.revisions
