"""URLs of databases, as each library takes them."""

import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import make_url

from dreamforge.store.engine import driver_url, libpq_url

_REST = "of%2Fthe%3Auser:a%20b%2Bc%40%25@db.example:5433/name"
_PASSWORD = "a b+c@%"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_password_with_anything_in_it_stays_what_it_is(scheme: str) -> None:
    told = conninfo_to_dict(libpq_url(f"{scheme}://{_REST}"))
    assert (told["user"], told["password"], told["host"], told["dbname"]) == (
        "of/the:user", _PASSWORD, "db.example", "name",
    )  # fmt: skip
    url = make_url(driver_url(f"{scheme}://{_REST}"))
    assert (url.drivername, url.username, url.password) == ("postgresql+psycopg", "of/the:user", _PASSWORD)
