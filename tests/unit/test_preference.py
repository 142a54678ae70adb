"""The header `Prefer`, read as RFC 7240 has it."""

import pytest
from starlette.requests import Request

from dreamforge.api.errors import HttpError
from dreamforge.api.idempotency import fingerprint
from dreamforge.api.preference import parse, wait_of


def _request(*headers: str) -> Request:
    return Request({"type": "http", "headers": [(b"prefer", value.encode("latin-1")) for value in headers]})


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ((), None),
        (("",), None),
        (("respond-async",), None),
        (("wait=30",), 30),
        (("wait",), 60),
        (('wait=""',), 60),
        (("wait=0",), 0),
        (("wait=00012",), 12),
        (("wait=61",), 60),
        (("wait=" + "9" * 6000,), 60),
        (("WAIT=5",), 5),
        (('Wait="7"',), 7),
        (("wait = 8",), 8),
        (("respond-async, wait=9",), 9),
        (("respond-async", "wait=10"), 10),
        (("wait=11, wait=12",), 11),
        (("wait=13", "wait=x"), 13),
        (("wait=14; strict; odd=1",), 14),
        (("wait=15;",), 15),
        ((', ,wait=16,,handling="len, ient"',), 16),
        (('note="a \\" wait=17", wait=18',), 18),
        (("return=minimal;wait=19",), None),
    ],
)
def test_the_seconds_that_are_asked_for(headers: tuple[str, ...], seconds: int | None) -> None:
    assert wait_of(_request(*headers)) == seconds


@pytest.mark.parametrize(
    "header",
    [
        "wait=soon", "wait=-1", "wait=1.5", "wait=1e2", "wait=\u00b2", "wait=", "wait==5", "wait 5", "=5", ";",
        "wait=5 6",
        'wait="5', "wait=5\x00", "wait=(5)", 'wait="5"6', "wait;=5", "@", "caf\xe9",
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused(header: str) -> None:
    with pytest.raises(HttpError) as caught:
        wait_of(_request(header))
    assert caught.value.status_code == 400


@pytest.mark.parametrize("header", ["a;" * 20_000, " " * 60_000, "a" * 60_000, "a=" + " " * 60_000 + "b"])
def test_a_long_header_is_read_in_no_time(header: str) -> None:
    """Reading it must not take the square of its length, which would be minutes."""
    parse(header)


@pytest.mark.parametrize(
    "header", ["a; " * 20_000 + "@", " " * 60_000 + "@", 'a="' + "\\a" * 30_000, "a" + " " * 60_000 + "@"]
)
def test_a_long_header_is_refused_in_no_time(header: str) -> None:
    with pytest.raises(HttpError):
        parse(header)


def test_a_fingerprint_is_of_the_value_not_of_the_text() -> None:
    assert fingerprint({"a": [1, {"b": "ü", "c": None}]}) == fingerprint({"a": [1, {"c": None, "b": "ü"}]})
    values = [{}, {"a": None}, {"a": 1}, {"a": True}, {"a": "1"}, {"a": [1]}, {"a": 1.5}, [], None, "", "a"]
    assert len({fingerprint(value) for value in values}) == len(values)
