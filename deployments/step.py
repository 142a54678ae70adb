"""The Ray task: one step on one GPU. It is the supervisor; the runner is its child."""

import os
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import ray
from ray import ObjectRef
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from sqlalchemy import Engine
from uuid6 import uuid7

from deployments.resources import database_url, open_blobs
from deployments.tasks import fence_of, kill_process, order_of, title_of
from dreamforge import settings as environment
from dreamforge import telemetry
from dreamforge.dispatch.cluster import gpu_nodes
from dreamforge.models.download.downloader import Downloader
from dreamforge.models.download.transport import Transport
from dreamforge.models.shelf import Shelf
from dreamforge.patience import for_seconds, outlast
from dreamforge.settings import Settings
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.claims import Claim, Whereabouts
from dreamforge.store.downloads import DownloadLeases
from dreamforge.store.engine import open_engine
from dreamforge.store.fence import Fence
from dreamforge.store.heartbeats import HeartbeatStore
from dreamforge.store.model_nodes import ModelNodeStore
from dreamforge.worker.gpu import visible_gpu
from dreamforge.worker.gpu_health import GpuHealth
from dreamforge.worker.memory import MemoryWatch
from dreamforge.worker.model_supply import ModelStock
from dreamforge.worker.node import Limits, Node
from dreamforge.worker.strays import is_stranger
from dreamforge.worker.supervisor import Supervisor

_SUPERVISOR_CONNECTIONS = 4
"""The conversation, the saver, the lease of the step and that of a file on its way each write."""


@ray.remote(num_gpus=1, num_cpus=0, max_calls=1, max_retries=0)
def run_step(order: dict[str, Any]) -> None:
    """Run one attempt of one step. ``order`` names it by plain values: it is shown in the dashboard."""
    telemetry.install()
    settings = environment.load()
    fence = fence_of(order)
    engine = open_engine(database_url(settings), application="dreamforge-step", pool_size=_SUPERVISOR_CONNECTIONS)
    attempt = AttemptStore(engine=engine, fence=fence)
    here = {"node_id": ray.get_runtime_context().get_node_id(), "supervisor_pid": os.getpid()}
    try:
        # First of all: what comes next asks drivers and file systems, and may not come back.
        outlast(lambda: attempt.arrive(here), may_wait=for_seconds(settings.database_grace))
        _supervisor(settings, attempt, fence, engine).run()
    finally:
        engine.dispose()


def submit(claim: Claim, *, prefer: Callable[[uuid.UUID], str | None] = lambda _: None) -> "ObjectRef[None]":
    """Hand a claimed step to Ray under a name that a person can read, for the node that ``prefer`` names if it can."""
    options: dict[str, Any] = {"name": title_of(claim)}
    if (node_id := prefer(claim.fence.step_id)) is not None:
        # Soft, and to be given up at once where that node has no GPU free: without the latter the step would wait for
        # it while others idle. Ray Serve places its replicas by the same option, which has no public name.
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id, soft=True, _spill_on_unavailable=True)
    return run_step.options(**options).remote(order_of(claim))


def kill(claim: Claim, whereabouts: Whereabouts | None) -> None:
    """Kill the process that runs a claim's task; without ``whereabouts`` on any node. Returns before it is done."""
    kill_process(claim, whereabouts, node_ids=[node.id for node in gpu_nodes()])


def _supervisor(settings: Settings, attempt: AttemptStore, fence: Fence, engine: Engine) -> Supervisor:
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
    heartbeats = HeartbeatStore(engine=engine)
    blobs = open_blobs(settings)
    return Supervisor(
        attempt=attempt,
        fence=fence,
        blobs=blobs,
        memory=memory,
        stock=_stock(settings, engine, endpoint=blobs.endpoint),
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


def _stock(settings: Settings, engine: Engine, *, endpoint: str) -> ModelStock:
    """Where this node has models from: the object store, which is asked as for images, by no proxy."""
    transport = Transport(plain_hosts=[urlsplit(endpoint).netloc], proxies={})
    return ModelStock(
        shelf=Shelf(settings.model_cache),
        cache_size=settings.model_cache_size,
        leases=DownloadLeases(engine=engine),
        downloader=Downloader(
            transport=transport,
            connections=settings.download_connections,
            stall_seconds=settings.download_stall_seconds,
        ),
        nodes=ModelNodeStore(engine=engine),
    )
