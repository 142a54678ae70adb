"""The migrations build what the tables say, and take it down again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection

from dreamforge.store import migrate
from dreamforge.store.engine import driver_url
from dreamforge.store.tables import Table

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
        Table.metadata.create_all(connection)
        declared = _shape(connection)
        Table.metadata.drop_all(connection)
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
