"""What a database that is not ours is like, and whether Dream Forge can live in it. Nothing is written."""

from dataclasses import dataclass

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from dreamforge.errors import DatabaseUnavailable
from dreamforge.store.engine import open_engine
from dreamforge.store.migrate import alembic_config
from dreamforge.store.tables import Table

OLDEST_POSTGRESQL = 150000
"""As `server_version_num` has it: the oldest one that its makers still mend, and that the tests run over."""

_SERVER = """
    SELECT current_setting('server_version_num')::int, current_setting('server_encoding'),
           current_setting('transaction_read_only')::bool, current_user, coalesce(current_schema(), ''),
           coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)"""
_TABLES = """
    SELECT relname, pg_has_role(relowner, 'USAGE'),
           has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
           AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE')
    FROM pg_class
    WHERE relkind IN ('r', 'p') AND relnamespace = current_schema()::regnamespace AND relname = ANY(:names)
    ORDER BY relname"""


@dataclass(frozen=True)
class DatabaseFacts:
    """A database as its user finds it. ``revision`` is the schema's, None where nothing was migrated yet."""

    version: int
    encoding: str
    is_read_only: bool
    user: str
    schema: str
    may_create: bool
    revision: str | None
    tables: tuple[str, ...]
    """Those that have the names of ours."""
    foreign_tables: tuple[str, ...]
    """Those of them that the user does not own, and so could not migrate."""
    closed_tables: tuple[str, ...]
    """Those of them that the user may not read and write."""


@dataclass(frozen=True)
class KnownSchemas:
    """The revisions that this version of the code can migrate from, and the one it needs."""

    revisions: frozenset[str]
    newest: str


def known_schemas() -> KnownSchemas:
    """What lies in the folder of migrations."""
    scripts = ScriptDirectory.from_config(alembic_config("postgresql://"))
    return KnownSchemas(
        revisions=frozenset(script.revision for script in scripts.walk_revisions()),
        newest=str(scripts.get_current_head()),
    )


def inspect(database_url: str) -> DatabaseFacts:
    """Look at the database. Raises ``DatabaseUnavailable`` with the server's own words when it does not let us."""
    engine = open_engine(database_url, application="dreamforge-up", pool_size=1)
    try:
        with engine.connect() as connection:
            return _look(connection)
    except DBAPIError as error:
        raise DatabaseUnavailable(_words(error)) from error
    finally:
        engine.dispose()


def objection(facts: DatabaseFacts, known: KnownSchemas) -> str | None:
    """Why Dream Forge cannot live there, or None when it can."""
    if facts.version < OLDEST_POSTGRESQL:
        return f"it is version {_version(facts.version)}, and {_version(OLDEST_POSTGRESQL)} is the oldest that will do"
    if facts.encoding != "UTF8":
        return f"its encoding is {facts.encoding}, and prompts need UTF8"
    if facts.is_read_only:
        return "it is read-only, as a standby is"
    if facts.revision is not None and facts.revision not in known.revisions:
        return (
            f"its schema {facts.revision!r} is unknown here, so a newer Dream Forge has migrated it: "
            "use that version, or another database"
        )
    if facts.revision == known.newest:
        return _objection_to_use(facts)
    return _objection_to_migration(facts)


def _objection_to_use(facts: DatabaseFacts) -> str | None:
    if facts.closed_tables:
        return f"the user {facts.user!r} may not read and write its {_named(facts.closed_tables)}"
    return None


def _objection_to_migration(facts: DatabaseFacts) -> str | None:
    if facts.revision is None and facts.tables:
        return f"it has another program's {_named(facts.tables)}: give Dream Forge a database of its own"
    if facts.foreign_tables:
        return f"the user {facts.user!r} does not own its {_named(facts.foreign_tables)} and cannot migrate them"
    if not facts.schema:
        return f"it has no schema that the user {facts.user!r} may use"
    if not facts.may_create:
        return f"the user {facts.user!r} may not create tables in its schema {facts.schema!r}"
    return None


def _named(tables: tuple[str, ...]) -> str:
    return f"{'table' if len(tables) == 1 else 'tables'} {', '.join(tables)}"


def _look(connection: Connection) -> DatabaseFacts:
    version, encoding, is_read_only, user, schema, may_create = connection.execute(text(_SERVER)).one()
    tables = connection.execute(text(_TABLES), {"names": list(Table.metadata.tables)}).all() if schema else []
    return DatabaseFacts(
        version=version,
        encoding=encoding,
        is_read_only=is_read_only,
        user=user,
        schema=schema,
        may_create=may_create,
        revision=_revision(connection),
        tables=tuple(name for name, _, _ in tables),
        foreign_tables=tuple(name for name, is_owned, _ in tables if not is_owned),
        closed_tables=tuple(name for name, _, is_open in tables if not is_open),
    )


def _revision(connection: Connection) -> str | None:
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar() is None:
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _version(number: int) -> str:
    major, minor = divmod(number, 10000)
    return f"{major}.{minor}" if minor else str(major)


def _words(error: DBAPIError) -> str:
    """The server's reason, without the driver's account of how it came to hear it."""
    told = [line.strip() for line in str(error.orig).splitlines() if line.strip()]
    # Of several addresses of one name, the last: the others are seldom meant.
    reasons = [line for line in told if "failed: " in line] or told[:1]
    return reasons[-1].rpartition("failed: ")[2].removeprefix("FATAL:").strip()
