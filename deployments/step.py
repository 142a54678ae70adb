"""The Ray task: one step on one GPU. It is the supervisor; the runner is its child."""

import contextlib
import os
import uuid
from datetime import UTC, datetime
from typing import Any

import psutil
import ray
from ray import ObjectRef
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from uuid6 import uuid7

from deployments.resources import database_url, open_blobs
from dreamforge import settings as environment
from dreamforge import telemetry
from dreamforge.dispatch.cluster import gpu_nodes
from dreamforge.patience import for_seconds, outlast
from dreamforge.settings import Settings
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.claims import Claim, Whereabouts
from dreamforge.store.engine import open_engine
from dreamforge.store.fence import Fence
from dreamforge.store.heartbeats import HeartbeatStore
from dreamforge.worker.gpu import visible_gpu
from dreamforge.worker.gpu_health import GpuHealth
from dreamforge.worker.memory import MemoryWatch
from dreamforge.worker.node import Limits, Node
from dreamforge.worker.strays import is_stranger
from dreamforge.worker.supervisor import Supervisor

_SUPERVISOR_CONNECTIONS = 3
"""The conversation, the saver and the lease each write."""


@ray.remote(num_gpus=1, num_cpus=0, max_calls=1, max_retries=0)
def run_step(order: dict[str, Any]) -> None:
    """Run one attempt of one step. ``order`` names it by plain values: it is shown in the dashboard."""
    telemetry.install()
    settings = environment.load()
    fence = Fence(
        job_id=uuid.UUID(order["job_id"]),
        step_id=uuid.UUID(order["step_id"]),
        attempt=order["attempt"],
        lease_token=uuid.UUID(order["lease_token"]),
    )
    engine = open_engine(database_url(settings), application="dreamforge-step", pool_size=_SUPERVISOR_CONNECTIONS)
    attempt = AttemptStore(engine=engine, fence=fence)
    here = {"node_id": ray.get_runtime_context().get_node_id(), "supervisor_pid": os.getpid()}
    try:
        # First of all: what comes next asks drivers and file systems, and may not come back.
        outlast(lambda: attempt.arrive(here), may_wait=for_seconds(settings.database_grace))
        _supervisor(settings, attempt, fence, HeartbeatStore(engine=engine)).run()
    finally:
        engine.dispose()


def submit(claim: Claim) -> "ObjectRef[None]":
    """Hand a claimed step to Ray under a name that a person can read."""
    fence = claim.fence
    order = {
        "job_id": str(fence.job_id),
        "step_id": str(fence.step_id),
        "attempt": fence.attempt,
        "lease_token": str(fence.lease_token),
    }
    return run_step.options(name=_title(claim)).remote(order)


@ray.remote(num_cpus=0, max_retries=0)
def _kill_here(pid: int | None, title: str) -> None:
    for candidate in psutil.pids() if pid is None else [pid]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process = psutil.Process(candidate)
            # By its title: the number may be somebody else's by now.
            if " ".join(process.cmdline()).startswith(f"ray::{title}"):
                process.kill()


def kill(claim: Claim, whereabouts: Whereabouts | None) -> None:
    """Kill the process that runs a claim's task; without ``whereabouts`` on any node. Returns before it is done."""
    pid = whereabouts.pid if whereabouts else None
    for node_id in [whereabouts.node_id] if whereabouts else [node.id for node in gpu_nodes()]:
        if node_id is not None:
            there = NodeAffinitySchedulingStrategy(node_id, soft=False)
            _kill_here.options(scheduling_strategy=there).remote(pid, _title(claim))


def _title(claim: Claim) -> str:
    """What Ray shows the task's process as, too: of one attempt, so that none is taken for another."""
    return f"{claim.name} {claim.fence.job_id} (attempt {claim.fence.attempt})"


def _supervisor(settings: Settings, attempt: AttemptStore, fence: Fence, heartbeats: HeartbeatStore) -> Supervisor:
    # Ray shows each task its own GPU through this variable; read it here, where the environment is known.
    variables = environment.inherited_environment()
    node = ray.util.get_node_ip_address()
    locks = settings.data_dir.absolute() / "locks"
    memory = MemoryWatch(
        gpu=visible_gpu(variables.get("CUDA_VISIBLE_DEVICES")),
        settle_seconds=settings.gpu_settle_seconds,
        tolerance_mib=settings.gpu_tolerance_mib,
        is_other=is_stranger,
    )
    return Supervisor(
        attempt=attempt,
        fence=fence,
        blobs=open_blobs(settings),
        memory=memory,
        health=GpuHealth(heartbeats=heartbeats, memory=memory, node=node, folder=locks),
        node=Node(
            name=node,
            id=ray.get_runtime_context().get_node_id(),
            locks_folder=locks,
            spool_folder=settings.data_dir.absolute() / "spool",
            environment=variables,
            step_memory=settings.step_memory,
        ),
        limits=Limits(
            lease=settings.lease_seconds,
            lease_renew=settings.lease_renew_seconds,
            step=settings.step_timeout,
            step_item=settings.step_item_timeout,
            stall=settings.stall_timeout,
            cancel_grace=settings.cancel_grace,
            database_grace=settings.database_grace,
            storage_grace=settings.storage_grace,
        ),
        new_id=uuid7,
        now=lambda: datetime.now(UTC),
    )
