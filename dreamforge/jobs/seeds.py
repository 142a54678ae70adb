"""Which seed an item is drawn with."""

from collections.abc import Callable

SEED_SPAN = 2**32


def item_seed(given: int | None, *, item_index: int, draw: Callable[[int], int]) -> int:
    """The seed of one item, in 0..2^32-1: the job's seed plus the item's index, or a fresh one from ``draw``.

    ``draw`` is called with the span, as ``secrets.randbelow`` is, and only when no seed was given: just before the
    item begins.
    """
    if given is None:
        return draw(SEED_SPAN)
    return (given + item_index) % SEED_SPAN
