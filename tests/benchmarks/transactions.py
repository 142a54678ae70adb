"""How many transactions a database has seen, as its server counts them."""

import time
from typing import Self

import psycopg
from psycopg.conninfo import conninfo_to_dict

_READ = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s"
_REPORT_SECONDS = 2.0


class TransactionCount:
    """The count of one database, read over a connection to another one, so that reading it does not change it.

    The server must be the benchmark's own: from the block on it vacuums nothing by itself, because that is counted too.
    Sessions tell of their transactions once a second: a few of the others' may be missing.
    """

    def __init__(self, database_url: str) -> None:
        self._database = conninfo_to_dict(database_url)["dbname"]
        self._connection = psycopg.connect(database_url, dbname="template1", autocommit=True)

    def __enter__(self) -> Self:
        self._connection.execute("ALTER SYSTEM SET autovacuum = off")
        self._connection.execute("SELECT pg_reload_conf()")
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def read(self) -> int:
        """Transactions so far, committed and rolled back, at the moment when a session has just told of its own."""
        before = self._told()
        deadline = time.monotonic() + _REPORT_SECONDS
        while (told := self._told()) == before and time.monotonic() < deadline:
            time.sleep(0.02)
        return told

    def _told(self) -> int:
        row = self._connection.execute(_READ, [self._database]).fetchone()
        assert row is not None
        return row[0]
