"""The Ray task that downloads a model: on the head, where the folder of models and the hubs' tokens are."""

import os
from typing import TYPE_CHECKING, Any

import ray
from pydantic import SecretStr
from ray import ObjectRef

from deployments.placement import on_head
from deployments.resources import blob_settings, database_url
from deployments.tasks import fence_of, kill_process, order_of, title_of
from dreamforge import settings as environment
from dreamforge import telemetry
from dreamforge.patience import for_seconds, outlast
from dreamforge.settings import Settings
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.claims import Claim, Whereabouts
from dreamforge.store.downloads import LEASE_SECONDS
from dreamforge.store.engine import open_engine
from dreamforge.store.fence import Fence
from dreamforge.worker.attempt import RunningAttempt
from dreamforge.worker.downloading import DownloadSupervisor

if TYPE_CHECKING:
    from dreamforge.installation.opening import WorkshopValues

_SUPERVISOR_CONNECTIONS = 2
"""The journal and the lease each write; the installer has its own."""


@ray.remote(max_calls=1, max_retries=0, **on_head())
def run_download(order: dict[str, Any]) -> None:
    """Run one attempt of one download. ``order`` names it by plain values: it is shown in the dashboard."""
    from dreamforge.installation.opening import open_installer  # noqa: PLC0415 - the hubs' libraries, only here

    telemetry.install()
    settings = environment.load()
    fence = fence_of(order)
    engine = open_engine(database_url(settings), application="dreamforge-download", pool_size=_SUPERVISOR_CONNECTIONS)
    attempt = AttemptStore(engine=engine, fence=fence)
    node_id = ray.get_runtime_context().get_node_id()
    try:
        # First of all: what comes next asks file systems, and may not come back.
        here = {"node_id": node_id, "supervisor_pid": os.getpid()}
        outlast(lambda: attempt.arrive(here), may_wait=for_seconds(settings.database_grace))
        running = _running(settings, attempt, fence, node_id=node_id)
        with open_installer(_values(settings), owner=f"job {fence.job_id}") as installer:
            DownloadSupervisor(running=running, installer=installer).run()
    finally:
        engine.dispose()


def submit(claim: Claim) -> "ObjectRef[None]":
    """Hand a claimed download to Ray under a name that a person can read."""
    return run_download.options(name=title_of(claim)).remote(order_of(claim))


def kill(claim: Claim, whereabouts: Whereabouts | None) -> None:
    """Kill the process that runs a claim's task, which is here, where the dispatcher is. Returns before it is done."""
    kill_process(claim, whereabouts, node_ids=[ray.get_runtime_context().get_node_id()])


def _values(settings: Settings) -> "WorkshopValues":
    from dreamforge.installation.opening import WorkshopValues  # noqa: PLC0415 - as above

    return WorkshopValues(
        database_url=database_url(settings),
        models_root=settings.models_root,
        blobs=blob_settings(settings),
        hf_endpoint=settings.hf_endpoint,
        hf_token=_secret(settings.hf_token),
        civitai_endpoint=settings.civitai_endpoint,
        civitai_token=_secret(settings.civitai_token),
        connections=settings.download_connections,
        stall_seconds=settings.download_stall_seconds,
        # Whoever takes over a step does not wait longer for the files of the one that was lost.
        lease_seconds=min(LEASE_SECONDS, settings.lease_seconds),
    )


def _secret(value: SecretStr | None) -> str | None:
    return None if value is None else value.get_secret_value()


def _running(settings: Settings, attempt: AttemptStore, fence: Fence, *, node_id: str) -> RunningAttempt:
    return RunningAttempt(
        attempt=attempt,
        fence=fence,
        node=ray.util.get_node_ip_address(),
        node_id=node_id,
        lease=settings.lease_seconds,
        lease_renew=settings.lease_renew_seconds,
        database_grace=settings.database_grace,
        cancel_grace=settings.cancel_grace,
    )
