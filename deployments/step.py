"""The Ray task: one step on one GPU. It is the supervisor; the runner is its child."""

import uuid
from datetime import UTC, datetime
from typing import Any

import ray
from ray import ObjectRef
from uuid6 import uuid7

from deployments.resources import database_url, open_blobs
from dreamforge import settings as environment
from dreamforge import telemetry
from dreamforge.settings import Settings
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.claims import Claim
from dreamforge.store.engine import open_engine
from dreamforge.store.fence import Fence
from dreamforge.worker.gpu import visible_gpu
from dreamforge.worker.memory import MemoryWatch
from dreamforge.worker.supervisor import Limits, Node, Supervisor

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
    try:
        _supervisor(settings, AttemptStore(engine=engine, fence=fence), fence).run()
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
    return run_step.options(name=f"{claim.name} {fence.job_id}").remote(order)


def _supervisor(settings: Settings, attempt: AttemptStore, fence: Fence) -> Supervisor:
    # Ray shows each task its own GPU through this variable; read it here, where the environment is known.
    variables = environment.inherited_environment()
    return Supervisor(
        attempt=attempt,
        fence=fence,
        blobs=open_blobs(settings),
        memory=MemoryWatch(
            gpu=visible_gpu(variables.get("CUDA_VISIBLE_DEVICES")),
            settle_seconds=settings.gpu_settle_seconds,
            tolerance_mib=settings.gpu_tolerance_mib,
        ),
        node=Node(
            name=ray.util.get_node_ip_address(),
            id=ray.get_runtime_context().get_node_id(),
            locks_folder=settings.data_dir.absolute() / "locks",
            environment=variables,
        ),
        limits=Limits(
            lease=settings.lease_seconds,
            lease_renew=settings.lease_renew_seconds,
            step=settings.step_timeout,
            database_grace=settings.database_grace,
        ),
        new_id=uuid7,
        now=lambda: datetime.now(UTC),
    )
