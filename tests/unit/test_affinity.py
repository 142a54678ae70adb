"""Which node is preferred for a step."""

from collections.abc import Mapping

import pytest

from dreamforge.dispatch.affinity import best_node
from dreamforge.dispatch.cluster import GpuNode
from dreamforge.store.model_nodes import Holding

ONE = GpuNode(id="1", address="10.0.0.1", gpus=1)
TWO = GpuNode(id="2", address="10.0.0.2", gpus=2)
NODES = (ONE, TWO)
ON_ONE = Holding("10.0.0.1", "1", 100)
ON_TWO = Holding("10.0.0.2", "2", 100)


@pytest.mark.parametrize(
    ("holdings", "busy", "best"),
    [
        ([], {}, None),
        ([ON_ONE], {}, "1"),
        ([ON_TWO], {}, "2"),
        # A busy one is not waited for; the other is Ray's to choose.
        ([ON_ONE], {"1": 1}, None),
        ([ON_TWO], {"2": 1}, "2"),
        ([ON_TWO], {"2": 2}, None),
        ([ON_ONE, ON_TWO], {}, "2"),
        ([ON_ONE, ON_TWO], {"2": 2}, "1"),
        # Most of what the step needs goes before most free GPUs.
        ([Holding("10.0.0.1", "1", 101), ON_TWO], {}, "1"),
        ([Holding("10.0.0.1", "1", 0)], {}, None),
        # Of nodes that are not there any more nothing is known.
        ([Holding("10.0.0.9", "9", 100)], {}, None),
        # One that was started anew has another id, and its old address.
        ([Holding("10.0.0.1", "0", 100)], {}, "1"),
        ([Holding("10.0.0.1", None, 100)], {}, "1"),
        # Two nodes of one address are told apart while both are there.
        ([Holding("10.0.0.1", "2", 100)], {}, "2"),
    ],
)
def test_it_is_one_that_has_the_models_and_a_free_gpu(
    holdings: list[Holding], busy: Mapping[str, int], best: str | None
) -> None:
    assert best_node(NODES, holdings, busy=busy) == best
