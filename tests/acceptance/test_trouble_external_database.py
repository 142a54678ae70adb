"""`dreamforge up` over a PostgreSQL of one's own that cannot be used: one sentence, and nothing is changed in it."""

import itertools
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from dreamforge.store import migrate
from tests.conftest import Database
from tests.refusal import SECRET, Refusals

_numbers = itertools.count(1)


@pytest.fixture
def role(postgres: Database) -> Iterator[str]:
    """A user of the server with `SECRET` as its password and no rights to speak of."""
    name = f"painter_{next(_numbers)}"
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
        connection.execute(create.format(sql.Identifier(name), sql.Literal(SECRET)))
        yield name


def _as(role: str, database_url: str, *, password: str = SECRET) -> str:
    parts = urlsplit(database_url)
    return f"postgresql://{role}:{password}@127.0.0.1:{parts.port}{parts.path}"


def _execute(database_url: str, *statements: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def _refused(refusals: Refusals, url: str) -> str:
    return refusals.sentence("DREAMFORGE_DATABASE_URL: PostgreSQL at 127.0.0.1:", DREAMFORGE_DATABASE_URL=url)


def test_a_wrong_password_of_postgresql(refusals: Refusals, empty_database_url: str, role: str) -> None:
    said = _refused(refusals, _as(role, empty_database_url, password="wr0ng"))
    assert f'password authentication failed for user "{role}"' in said


def test_a_database_that_is_not_there(refusals: Refusals, postgres: Database) -> None:
    assert 'database "nowhere" does not exist' in _refused(refusals, postgres.url("nowhere"))


def test_a_user_who_may_not_create_tables(refusals: Refusals, empty_database_url: str, role: str) -> None:
    said = _refused(refusals, _as(role, empty_database_url))
    assert f"the user '{role}' may not create tables in its schema 'public'" in said


def test_a_user_who_may_not_write_to_the_tables(refusals: Refusals, empty_database_url: str, role: str) -> None:
    migrate.upgrade(empty_database_url)
    _execute(empty_database_url, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    assert f"the user '{role}' may not read and write its tables " in _refused(refusals, _as(role, empty_database_url))


def test_a_user_who_may_not_even_look(refusals: Refusals, empty_database_url: str, role: str) -> None:
    migrate.upgrade(empty_database_url)
    assert "permission denied for table alembic_version" in _refused(refusals, _as(role, empty_database_url))


def test_a_database_that_is_read_only(refusals: Refusals, empty_database_url: str) -> None:
    name = urlsplit(empty_database_url).path[1:]
    _execute(empty_database_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert "it is read-only" in _refused(refusals, empty_database_url)


def test_a_database_for_some_letters_only(refusals: Refusals, postgres: Database) -> None:
    name = f"latin_{next(_numbers)}"
    _execute(postgres.url("postgres"), f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    assert "its encoding is LATIN1" in _refused(refusals, postgres.url(name))


def test_a_database_of_another_program(refusals: Refusals, empty_database_url: str) -> None:
    _execute(empty_database_url, "CREATE TABLE jobs (whose text)", "INSERT INTO jobs VALUES ('theirs')")
    assert "another program's table jobs" in _refused(refusals, empty_database_url)


def _everything(database_url: str) -> list[Any]:
    with psycopg.connect(database_url) as connection:
        return [
            connection.execute(query).fetchall()
            for query in (
                "SELECT oid, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY oid",
                "SELECT * FROM alembic_version",
                "SELECT * FROM heartbeats",
            )
        ]


def test_a_database_that_a_newer_dream_forge_has_migrated(refusals: Refusals, empty_database_url: str) -> None:
    migrate.upgrade(empty_database_url)
    _execute(
        empty_database_url,
        "UPDATE alembic_version SET version_num = '9999'",
        "INSERT INTO heartbeats (id, kind, node, info_json) VALUES (gen_random_uuid(), 'api', 'n', '{}')",
    )
    before = _everything(empty_database_url)
    assert "'9999' is unknown here, so a newer Dream Forge has migrated it" in _refused(refusals, empty_database_url)
    assert _everything(empty_database_url) == before
