"""Which seed an item is drawn with."""

import pytest

from dreamforge.jobs.seeds import item_seed


def _never(span: int) -> int:
    raise AssertionError(span)


@pytest.mark.parametrize(("given", "index", "expected"), [(7, 0, 7), (7, 3, 10), (2**32 - 1, 1, 0)])
def test_a_given_seed_counts_up_with_the_items_and_wraps(given: int, index: int, expected: int) -> None:
    assert item_seed(given, item_index=index, draw=_never) == expected


def test_without_one_each_item_draws_its_own() -> None:
    assert item_seed(None, item_index=5, draw=lambda span: span - 1) == 2**32 - 1
