"""Where Serve's replicas run: on the cluster's head, which needs no GPU.

The dispatcher owns the tasks it submits, and they end with it: it must not stand on a node that is drained, scaled down
or rented for a while. The API's replicas are where HAProxy is, and are reached on loopback: no node but the head
listens for clients, and a node with nothing to draw is idle in the autoscaler's eyes.
"""

from typing import Any

_HEAD = "node:__internal_head__"
"""A resource that every head has, and nobody else: 1.0 of it."""


def on_head() -> dict[str, Any]:
    """Options for a replica, or a task, on the head that takes no CPU from the tasks' account."""
    return {"num_cpus": 0, "resources": {_HEAD: 0.001}}
