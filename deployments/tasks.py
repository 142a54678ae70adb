"""What every step's task has in common: its order, its title, and how its process is ended."""

import contextlib
import uuid
from collections.abc import Sequence
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dreamforge.store.claims import Claim, Whereabouts
from dreamforge.store.fence import Fence


def order_of(claim: Claim) -> dict[str, Any]:
    """The claim as plain values, which a task is given: they are shown in the dashboard."""
    fence = claim.fence
    return {
        "job_id": str(fence.job_id),
        "step_id": str(fence.step_id),
        "attempt": fence.attempt,
        "lease_token": str(fence.lease_token),
    }


def fence_of(order: dict[str, Any]) -> Fence:
    """Inverse of ``order_of``."""
    return Fence(
        job_id=uuid.UUID(order["job_id"]),
        step_id=uuid.UUID(order["step_id"]),
        attempt=order["attempt"],
        lease_token=uuid.UUID(order["lease_token"]),
    )


def title_of(claim: Claim) -> str:
    """What Ray shows the task's process as, too: of one attempt, so that none is taken for another."""
    return f"{claim.name} {claim.fence.job_id} (attempt {claim.fence.attempt})"


def kill_process(claim: Claim, whereabouts: Whereabouts | None, *, node_ids: Sequence[str]) -> None:
    """Kill the process that runs a claim's task; without ``whereabouts`` on any of the nodes. Returns at once."""
    pid = whereabouts.pid if whereabouts else None
    for node_id in [whereabouts.node_id] if whereabouts else node_ids:
        if node_id is not None:
            there = NodeAffinitySchedulingStrategy(node_id, soft=False)
            _kill_here.options(scheduling_strategy=there).remote(pid, title_of(claim))


@ray.remote(num_cpus=0, max_retries=0)
def _kill_here(pid: int | None, title: str) -> None:
    for candidate in psutil.pids() if pid is None else [pid]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(candidate)
            # By its title: the number may be somebody else's by now.
            if " ".join(process.cmdline()).startswith(f"ray::{title}"):
                process.kill()
