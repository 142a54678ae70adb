"""The migrations build what the tables say, and take it down again."""

import os
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import BigInteger, DateTime, Integer, MetaData, Table, Uuid, create_engine, select, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.engine import Connection
from sqlalchemy.types import TypeEngine

from dreamforge.errors import DatabaseUnavailable
from dreamforge.store import migrate, tables
from dreamforge.store.engine import driver_url

pytestmark = pytest.mark.every_server

_SHAPE = {
    "columns": """
        SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns
        WHERE table_schema = 'public' AND table_name <> 'alembic_version'""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version'""",
    "indices": """
        SELECT tablename, indexname, indexdef FROM pg_indexes
        WHERE schemaname = 'public' AND tablename <> 'alembic_version'""",
}


def _shape(connection: Connection) -> dict[str, set[tuple[str, ...]]]:
    return {part: {tuple(row) for row in connection.execute(text(query))} for part, query in _SHAPE.items()}


def test_migrations_and_tables_do_not_drift(empty_database_url: str) -> None:
    engine = create_engine(driver_url(empty_database_url))
    with engine.begin() as connection:
        tables.Table.metadata.create_all(connection)
        declared = _shape(connection)
        tables.Table.metadata.drop_all(connection)
    migrate.upgrade(empty_database_url)
    with engine.begin() as connection:
        migrated = _shape(connection)
    engine.dispose()
    assert declared["columns"], "the comparison compares something"
    assert migrated == declared


def test_down_leaves_nothing_and_up_works_again(empty_database_url: str) -> None:
    engine = create_engine(driver_url(empty_database_url))
    migrate.upgrade(empty_database_url)
    migrate.downgrade(empty_database_url, "base")
    with engine.begin() as connection:
        assert not _shape(connection)["columns"]
    migrate.upgrade(empty_database_url)
    with engine.begin() as connection:
        assert _shape(connection)["columns"]
    engine.dispose()


def test_a_second_upgrade_changes_nothing(database_url: str) -> None:
    migrate.upgrade(database_url)


_NOT_KEPT = {"alembic_version", "downloads", "model_nodes"}
"""The last two had nothing in them until they were made anew."""


def test_data_of_the_first_version_is_kept(empty_database_url: str) -> None:
    migrate.upgrade(empty_database_url, "0001")
    engine = create_engine(driver_url(empty_database_url))
    metadata = MetaData()
    with engine.begin() as connection:
        metadata.reflect(connection)
        kept = [table for table in metadata.sorted_tables if table.name not in _NOT_KEPT]
        for table in kept:
            connection.execute(table.insert().values(_row_of(table)))
    migrate.upgrade(empty_database_url)
    with engine.begin() as connection:
        for table in kept:
            assert connection.execute(select(*table.columns)).one(), table.name
    engine.dispose()


def _row_of(table: Table) -> dict[str, Any]:
    """A value for every column that must have one: the same id everywhere, so that rows belong together."""
    words = {"type": "generate", "status": "queued", "priority": "normal", "lane": "gpu", "kind": "api", "count": 1}
    values: dict[str, Any] = {}
    for column in table.columns:
        if column.name in words and (table.name, column.name) != ("items", "status"):
            values[column.name] = words[column.name]
        elif isinstance(column.type, Uuid):
            values[column.name] = uuid.UUID(int=1)
        elif column.server_default is None and column.identity is None and not column.nullable:
            values[column.name] = _value_of(column.type)
    return values


def _value_of(type: TypeEngine[Any]) -> Any:
    if isinstance(type, JSONB):
        return {}
    if isinstance(type, ARRAY):
        return []
    if isinstance(type, DateTime):
        return datetime.now(UTC)
    return 1 if isinstance(type, Integer | BigInteger) else "word"


def test_a_lock_that_others_hold_is_not_waited_for_without_a_word(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.upgrade(empty_database_url, "0001")
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", 1)
    with psycopg.connect(empty_database_url) as other:
        other.execute("LOCK TABLE jobs")
        with pytest.raises(DatabaseUnavailable, match="another session holds its lock"):
            migrate.upgrade(empty_database_url)
    migrate.upgrade(empty_database_url)


def _alembic(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DREAMFORGE_")}
    command = [sys.executable, "-m", "alembic", *arguments]
    root = Path(__file__).parents[2]
    return subprocess.run(
        command, env=inherited | variables, cwd=root, capture_output=True, text=True, timeout=60, check=False
    )


def test_alembic_s_own_command_works_on_the_database_of_the_settings(empty_database_url: str) -> None:
    assert _alembic("upgrade", "head", DREAMFORGE_DATABASE_URL=empty_database_url).returncode == 0
    checked = _alembic("check", DREAMFORGE_DATABASE_URL=empty_database_url)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    without = _alembic("current")
    assert without.returncode == 1
    assert "DREAMFORGE_DATABASE_URL is not set" in without.stderr
