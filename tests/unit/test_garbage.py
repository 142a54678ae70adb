"""What the garbage collector looks at in a replica."""

import gc
from collections.abc import Iterator

import pytest

from dreamforge.api.garbage import leave_out_what_is_there


@pytest.fixture(autouse=True)
def thaw() -> Iterator[None]:
    """Leave this process as it was."""
    yield
    gc.unfreeze()


def test_what_exists_is_looked_at_no_more_and_what_comes_is() -> None:
    before = len(gc.get_objects())
    leave_out_what_is_there()
    assert gc.get_freeze_count() > before / 2
    assert len(gc.get_objects()) < before / 10
    circle: list[object] = []
    circle.append(circle)
    del circle
    assert gc.collect() > 0
