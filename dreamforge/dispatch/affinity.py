"""Which node a step had better run on: one that has its models, if it has a free GPU.

A preference, never a condition: Ray takes another node where this one turns out to be busy. A step that finds no such
node free is left to Ray, which gives it the first GPU there is: to fetch a model is better than to wait for a node.
"""

import logging
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from dreamforge.dispatch.cluster import GpuNode
from dreamforge.errors import DatabaseUnavailable
from dreamforge.store.model_nodes import Holding, ModelNodeStore

log = logging.getLogger(__name__)


class Affinity:
    """Chooses for the steps of one dispatcher, which runs all that there are. Asked by several threads."""

    def __init__(self, *, store: ModelNodeStore, nodes: Callable[[], Sequence[GpuNode]]) -> None:
        self._store = store
        self._nodes = nodes
        self._lock = threading.Lock()
        self._chosen: dict[uuid.UUID, str] = {}

    def choose(self, step_id: uuid.UUID) -> str | None:
        """Ray's id of the node that the step had better run on; None where none is better."""
        try:
            holdings = self._store.holdings(step_id)
            if not holdings:
                return None
            with self._lock:
                running = self._store.running_steps()
                # Those that were sent to a node and have not arrived anywhere.
                self._chosen = {
                    step: node for step, node in self._chosen.items() if step in running and running[step] is None
                }
                node_id = best_node(self._nodes(), holdings, busy=_busy(running, self._chosen))
                if node_id is not None:
                    self._chosen[step_id] = node_id
                return node_id
        except DatabaseUnavailable:
            log.warning("no node is preferred: the database is away")
            return None


def best_node(nodes: Sequence[GpuNode], holdings: Sequence[Holding], *, busy: Mapping[str, int]) -> str | None:
    """Of the nodes with a free GPU the one that has most of a step's models, and most free GPUs; None if none has any.

    ``busy``: GPUs in use, by Ray's id of the node.
    """
    free = {node.id: node.gpus - busy.get(node.id, 0) for node in nodes}
    held = {node.id: held_bytes(node, holdings, known={node.id for node in nodes}) for node in nodes}
    able = [node.id for node in nodes if held[node.id] > 0 and free[node.id] > 0]
    return max(able, key=lambda node_id: (held[node_id], free[node_id], node_id), default=None)


def held_bytes(node: GpuNode, holdings: Sequence[Holding], *, known: set[str]) -> int:
    """Bytes that the node holds.

    Ray has a new id for a node that was started anew; until it has drawn something it is known by its address.
    """
    return max(
        (
            holding.size_bytes
            for holding in holdings
            if holding.node_id == node.id or (holding.node_id not in known and holding.node == node.address)
        ),
        default=0,
    )


def _busy(running: Mapping[uuid.UUID, str | None], chosen: Mapping[uuid.UUID, str]) -> Counter[str]:
    places = (node_id or chosen.get(step_id) for step_id, node_id in running.items())
    return Counter(place for place in places if place is not None)
