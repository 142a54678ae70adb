"""Which texts are ids."""

import uuid

import pytest

from dreamforge.jobs.identity import uuid_of

_ID = "01936b2e-7c1a-7b5e-9d0c-3f6a1f0b2c3d"
OTHER_SPELLINGS = [
    _ID.replace("-", ""),
    f"{{{_ID}}}",
    f"urn:uuid:{_ID}",
    "0-1936b2e7c1a7b5e9d0c3f6a1f0b2c3d",
    _ID.replace("0", "\u0660"),
    _ID.replace("0", "\uff10"),
    f" {_ID}",
    f"{_ID}\n",
    f"{_ID}0",
    _ID[:-1],
    _ID.replace("a", "g"),
    "",
]


@pytest.mark.parametrize("text", [_ID, _ID.upper()])
def test_the_canonical_form_is_an_id_in_either_case(text: str) -> None:
    assert uuid_of(text) == uuid.UUID(_ID)


@pytest.mark.parametrize("text", OTHER_SPELLINGS)
def test_every_other_form_is_none(text: str) -> None:
    assert uuid_of(text) is None
