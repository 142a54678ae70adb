"""What the Ray cluster has: its GPUs and its nodes."""

from dataclasses import dataclass

import ray


@dataclass(frozen=True)
class GpuNode:
    """A living node with GPUs; ``gpus`` may be logical ones on a machine without any."""

    id: str
    address: str
    gpus: int


def gpu_nodes() -> list[GpuNode]:
    """Every living node that offers GPUs."""
    return [
        GpuNode(id=node["NodeID"], address=node["NodeManagerAddress"], gpus=int(node["Resources"]["GPU"]))
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU", 0) >= 1
    ]
