"""Models that lie where no node can see them: two nodes, each with a cache of its own, and an object store between."""

import contextlib
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Generator, Iterator
from typing import Any

import httpx2
import psutil
import pytest
from sqlalchemy import Engine

from dreamforge.embedded.object_store import ObjectStore
from dreamforge.embedded.postgres import Postgres
from dreamforge.installation.publishing import Publisher
from dreamforge.models.descriptor import ModelFile
from dreamforge.store.engine import open_engine
from dreamforge.store.models import NewModel
from tests.conftest import create_database
from tests.integration.bench import files_of
from tests.integration.factories import a_model
from tests.metered_relay import MeteredRelay
from tests.ray_cluster import RayCluster
from tests.running_stack import command_of
from tests.service import wait_for

pytestmark = pytest.mark.timeout(400)

BALLAST = 12_000_000
"""Bytes of each model that no other has."""
LITTLE = 500_000
CACHE = 2 * BALLAST
"""Room for one model and what it shares with others, and not for two."""


@pytest.fixture(scope="module")
def relay(object_store: ObjectStore) -> Iterator[MeteredRelay]:
    """What stands between the cluster and the object store."""
    with MeteredRelay.before(object_store.endpoint) as relay:
        yield relay


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> str:
    """The cluster's."""
    return create_database(postgres, template="template0")


@pytest.fixture(scope="module")
def cluster(database: str, redis_url: str, object_store: ObjectStore, relay: MeteredRelay) -> Iterator[RayCluster]:
    """The service on a head, which has the models, and two nodes, which do not."""
    cluster = RayCluster(
        variables={
            "DREAMFORGE_DATABASE_URL": database,
            "DREAMFORGE_REDIS_URL": redis_url.removesuffix("/0") + "/8",
            "DREAMFORGE_S3_ENDPOINT": relay.moved(object_store.endpoint),
            "DREAMFORGE_S3_PUBLIC_ENDPOINT": object_store.endpoint,
            "DREAMFORGE_S3_ACCESS_KEY": object_store.access_key,
            "DREAMFORGE_S3_SECRET_KEY": object_store.secret_key,
        }
    )
    try:
        cluster.start_head()
        cluster.typed("dreamforge prepare")
        cluster.wait_for_node("head")
        for name in ("one", "two"):
            folder = cluster.folder / f"data-{name}"
            cluster.start_node(name, DREAMFORGE_DATA_DIR=str(folder), DREAMFORGE_MODEL_CACHE_SIZE=str(CACHE))
        for name in ("one", "two"):
            cluster.wait_for_node(name)
        cluster.typed(f"serve deploy {cluster.serve_config()}")
        wait_for(lambda: _is_ready(cluster), seconds=120, what=f"readiness; {cluster.told()}")
        yield cluster
    finally:
        cluster.stop()
    assert not cluster.left()


@pytest.fixture(scope="module")
def engine(database: str, cluster: RayCluster) -> Iterator[Engine]:
    """The registry's."""
    assert cluster
    engine = open_engine(database, application="tests", pool_size=2)
    yield engine
    engine.dispose()


def _is_ready(cluster: RayCluster) -> bool:
    try:
        return cluster.get("/readyz").json()["status"] == "ok"
    except (httpx2.HTTPError, ValueError, KeyError):
        return False


def _publish(cluster: RayCluster, engine: Engine, store: ObjectStore, name: str) -> NewModel:
    """A model as the head has it that has downloaded it: registered, published, and out of the nodes' sight."""
    (tiny,) = [path for path in cluster.models_dir.rglob("model_index.json")]
    folder = cluster.folder / name
    shutil.copytree(tiny.parent, folder)
    (folder / "ballast.txt").write_bytes(secrets.token_bytes(BALLAST))
    files = files_of(folder)
    Publisher(blobs=store.blobs()).publish([(folder / file.path, ModelFile(**vars(file))) for file in files])
    shutil.rmtree(folder)
    return a_model(engine, name=name, local_path=str(folder), files=files)


def _draw(cluster: RayCluster, model: str) -> dict[str, Any]:
    answer = cluster.post(model_id=model, params={"prompt": "a fox", "steps": 2, "width": 64, "height": 64})
    assert answer.status_code == 201, answer.text
    return answer.json()


def _drawn(cluster: RayCluster, model: str) -> dict[str, Any]:
    job = cluster.wait_for_job(_draw(cluster, model)["id"])
    assert (job["status"], job["error"]) == ("succeeded", None)
    return job


def _fetched(cluster: RayCluster, job: dict[str, Any]) -> list[dict[str, Any]]:
    return [event["payload"] for event in cluster.events(job) if event["code"] == "model.fetching"]


def _holders(cluster: RayCluster, model: str) -> dict[str, bool]:
    """The nodes that the API says have a model, and whether they are online."""
    names = {node.id: name for name, node in cluster.nodes.items()}
    return {names[node["node_id"]]: node["online"] for node in cluster.get(f"/v1/models/{model}").json()["nodes"]}


def _supervisors(cluster: RayCluster) -> list[psutil.Process]:
    """The processes of the steps on all nodes."""
    found: list[psutil.Process] = []
    for node in cluster.nodes.values():
        for process in node.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                if command_of(process).startswith("ray::generate"):
                    found.append(process)
    return found


def test_a_node_fetches_a_model_once_and_gets_the_next_steps_for_it(
    cluster: RayCluster, engine: Engine, object_store: ObjectStore, relay: MeteredRelay
) -> None:
    model = _publish(cluster, engine, object_store, "first")
    before = relay.passed
    job = _drawn(cluster, "first")
    total = sum({file.sha256: file.size for file in model.files}.values())
    assert _fetched(cluster, job)[-1]["bytes_done"] == total
    holder = cluster.place(job)
    assert holder is not None
    assert _holders(cluster, "first") == {holder: True}
    for _ in range(3):
        job = _drawn(cluster, "first")
        assert cluster.place(job) == holder, "of two idle nodes it is the one that has the model"
        assert _fetched(cluster, job) == []
    assert total <= relay.passed - before < total + LITTLE, "it has come over the network once"
    kept = cluster.folder / f"data-{holder}" / "model-cache" / "blobs"
    assert {path.name for path in kept.rglob("*") if path.is_file()} == {file.sha256 for file in model.files}


_HOLDER = """
import ray, sys, time
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
ray.init(address=sys.argv[1], log_to_driver=False)

@ray.remote(num_gpus=1, num_cpus=0, max_retries=0)
def hold():
    time.sleep(600)

hold.options(scheduling_strategy=NodeAffinitySchedulingStrategy(sys.argv[2], soft=False)).remote()
while ray.available_resources().get("GPU", 0) > 1:
    time.sleep(0.1)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def _gpu_held_by_others(cluster: RayCluster, node: str) -> Generator[None]:
    """In the block a node's GPU is in use by something that is no step of ours."""
    command = cluster.in_environment(
        f"exec python -c {shlex.quote(_HOLDER)} {cluster.gcs_address} {cluster.nodes[node].id}"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=cluster.environment, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield
        finally:
            process.kill()


def test_a_gpu_that_turns_out_to_be_in_use_is_not_waited_for(cluster: RayCluster) -> None:
    (holder,) = _holders(cluster, "first")
    with _gpu_held_by_others(cluster, holder):
        second = _drawn(cluster, "first")
        (other,) = {"one", "two"} - {holder}
        assert cluster.place(second) == other
        assert _fetched(cluster, second)
    assert _holders(cluster, "first") == {"one": True, "two": True}


def test_a_step_does_not_wait_for_the_node_that_has_its_model(
    cluster: RayCluster, engine: Engine, object_store: ObjectStore
) -> None:
    _publish(cluster, engine, object_store, "second")
    first = _drawn(cluster, "second")
    running = _draw(cluster, "second")
    holder = wait_for(lambda: cluster.place(running), what="the step's place")
    assert holder == cluster.place(first)
    with cluster.nodes[holder].held():
        second = _drawn(cluster, "second")
        (other,) = {"one", "two"} - {holder}
        assert cluster.place(second) == other, "the other node is idle, and fetches it"
        assert _fetched(cluster, second)
        assert _holders(cluster, "second") == {"one": True, "two": True}
    assert cluster.wait_for_job(running["id"])["status"] == "succeeded"


def test_a_step_that_is_killed_while_it_fetches_is_tried_again_and_old_models_make_room(
    cluster: RayCluster, engine: Engine, object_store: ObjectStore, relay: MeteredRelay
) -> None:
    model = _publish(cluster, engine, object_store, "third")
    with relay.letting_through(BALLAST // 2):
        job = _draw(cluster, "third")
        wait_for(lambda: any(told["bytes_done"] > 0 for told in _fetched(cluster, job)), what="some of the model")
        (supervisor,) = _supervisors(cluster)
        supervisor.kill()
        wait_for(lambda: not supervisor.is_running(), what="its end")
    ended = cluster.wait_for_job(job["id"])
    assert (ended["status"], ended["steps"][0]["attempt"]) == ("succeeded", 2)
    holder = cluster.place(ended)
    assert holder is not None
    assert _holders(cluster, "third") == {holder: True}
    (other,) = {"one", "two"} - {holder}
    assert _holders(cluster, "second") == {other: True}, "there was no room for both"
    kept = cluster.folder / f"data-{holder}" / "model-cache"
    sizes = [path.stat().st_size for path in (kept / "blobs").rglob("*") if path.is_file()]
    assert sum(sizes) == sum({file.sha256: file.size for file in model.files}.values()) <= CACHE
    assert not list((kept / "partial").iterdir())


def test_a_node_that_is_lost_is_told_as_away_and_its_models_come_anew(cluster: RayCluster) -> None:
    (holder,) = _holders(cluster, "third")
    (other,) = {"one", "two"} - {holder}
    cluster.nodes[holder].lose()
    wait_for(lambda: _holders(cluster, "third") == {holder: False}, what="the node's absence")
    shown = cluster.typed(f"dreamforge model show third --url {cluster.base_url}")
    assert f"{cluster.nodes[holder].address} (away)" in shown
    job = _drawn(cluster, "third")
    assert cluster.place(job) == other
    assert _holders(cluster, "third") == {holder: False, other: True}
