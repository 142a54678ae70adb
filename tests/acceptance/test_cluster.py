"""The service on a Ray cluster that `dreamforge up` did not start: a head without GPUs, and nodes that come and go."""

import io
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from PIL import Image

from dreamforge.embedded.object_store import ObjectStore
from dreamforge.embedded.postgres import Postgres
from tests.conftest import create_database
from tests.ray_cluster import RayCluster
from tests.running_stack import RunningStack, command_of
from tests.service import wait_for
from tests.web import web

pytestmark = pytest.mark.timeout(400)

PARAMS = {"prompt": "a fox", "steps": 4}


@pytest.fixture(scope="module")
def variables(postgres: Postgres, redis_url: str, object_store: ObjectStore) -> dict[str, str]:
    return {
        "DREAMFORGE_DATABASE_URL": create_database(postgres, template="template0"),
        # A database of the cluster's own: other tests' tickets are none of its business.
        "DREAMFORGE_REDIS_URL": redis_url.removesuffix("/0") + "/7",
        "DREAMFORGE_S3_ENDPOINT": object_store.endpoint,
        "DREAMFORGE_S3_PUBLIC_ENDPOINT": object_store.endpoint,
        "DREAMFORGE_S3_ACCESS_KEY": object_store.access_key,
        "DREAMFORGE_S3_SECRET_KEY": object_store.secret_key,
    }


@pytest.fixture(scope="module")
def cluster(variables: dict[str, str]) -> Iterator[RayCluster]:
    """The service on a head and two nodes, deployed by the commands of the README."""
    cluster = RayCluster(variables=variables)
    try:
        cluster.start_head()
        cluster.typed("dreamforge prepare")
        cluster.wait_for_node("head")
        for name in ("one", "two"):
            cluster.start_node(name)
        for name in ("one", "two"):
            cluster.wait_for_node(name)
        cluster.typed(f"serve deploy {cluster.serve_config()}")
        wait_for(lambda: _is_ready(cluster), seconds=120, what=f"readiness; {cluster.told()}")
        yield cluster
    finally:
        cluster.stop()
    assert not cluster.left()


def _is_ready(cluster: RayCluster) -> bool:
    try:
        return cluster.get("/readyz").json()["status"] == "ok"
    except (httpx2.HTTPError, ValueError, KeyError):
        return False


def _slots(variables: dict[str, str]) -> int:
    """Steps that the dispatcher has in hand at once: one for each GPU, and one more."""
    query = "SELECT info_json->'slots' FROM heartbeats WHERE kind = 'dispatcher' ORDER BY seen_at DESC LIMIT 1"
    with psycopg.connect(variables["DREAMFORGE_DATABASE_URL"]) as connection:
        return (connection.execute(query).fetchone() or (0,))[0]


def _submit(cluster: RayCluster, *, jobs: int) -> list[dict[str, Any]]:
    answers = [cluster.post(count=2, params={**PARAMS, "seed": number}) for number in range(jobs)]
    assert {answer.status_code for answer in answers} == {201}
    return [answer.json() for answer in answers]


def _placed(cluster: RayCluster, jobs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The jobs by the node that each runs on."""
    wait_for(lambda: all(cluster.place(job) for job in jobs), what="running steps")
    return {str(cluster.place(job)): job for job in jobs}


def _ended(cluster: RayCluster, *jobs: dict[str, Any]) -> list[str]:
    return [cluster.wait_for_job(job["id"], seconds=150)["status"] for job in jobs]


def _attempt(cluster: RayCluster, job: dict[str, Any]) -> int:
    return cluster.get(job["links"]["self"]).json()["steps"][0]["attempt"]


def test_serve_deploy_is_all_that_a_cluster_needs(cluster: RayCluster) -> None:
    job = cluster.run(count=2, params=PARAMS)
    assert (job["status"], job["error"]) == ("succeeded", None)
    for artifact in cluster.artifacts(job):
        image = Image.open(io.BytesIO(web.get(artifact["url"]).raise_for_status().content))
        assert image.size == (64, 64)
    assert {name: each["status"] for name, each in cluster.status()["applications"].items()} == {
        "api": "RUNNING",
        "dispatcher": "RUNNING",
    }


def test_without_the_token_the_cluster_lets_nobody_in(cluster: RayCluster) -> None:
    for path in ("/api/jobs/", "/api/serve/applications/", "/nodes?view=summary"):
        assert web.get(f"{cluster.dashboard_url}{path}").status_code in {401, 403}, path
        wrong = web.get(f"{cluster.dashboard_url}{path}", headers={"Authorization": "Bearer a-wrong-one"})
        assert wrong.status_code in {401, 403}, path
        right = web.get(f"{cluster.dashboard_url}{path}", headers={"Authorization": f"Bearer {cluster.token}"})
        assert right.status_code == 200, path


def test_everything_but_the_steps_is_on_the_head(cluster: RayCluster) -> None:
    def names(node: str) -> list[str]:
        return [command_of(process) for process in cluster.nodes[node].family()]

    assert len([name for name in names("head") if "ServeReplica" in name]) == 3
    assert [name for name in names("head") if "haproxy" in name]
    for node in ("one", "two"):
        assert not [name for name in names(node) if "Serve" in name or "haproxy" in name]


def test_a_node_that_joins_while_work_waits_takes_its_share(cluster: RayCluster, variables: dict[str, str]) -> None:
    wait_for(lambda: _slots(variables) == 3, what="a slot for each GPU and one more")
    running = _submit(cluster, jobs=2)
    assert set(_placed(cluster, running)) == {"one", "two"}
    with cluster.nodes["one"].held(), cluster.nodes["two"].held():
        waiting = _submit(cluster, jobs=2)
        cluster.start_node("three")
        cluster.wait_for_node("three")
        assert _ended(cluster, *waiting) == ["succeeded"] * 2
        assert set(_placed(cluster, waiting)) == {"three"}
        wait_for(lambda: _slots(variables) == 4, what="one slot more")
    assert _ended(cluster, *running) == ["succeeded"] * 2


def test_a_lost_node_s_step_comes_back_on_another_and_no_other_is_hurt(
    cluster: RayCluster, variables: dict[str, str]
) -> None:
    nodes = cluster.nodes
    if "three" not in nodes:
        cluster.start_node("three")
        cluster.wait_for_node("three")
    wait_for(lambda: _slots(variables) == 4, what="a slot for each GPU and one more")
    running = _placed(cluster, _submit(cluster, jobs=3))
    assert set(running) == {"one", "two", "three"}, "three steps at once are on three nodes"
    with nodes["one"].held(), nodes["two"].held(), nodes["three"].held():
        nodes["three"].lose()
        wait_for(lambda: _attempt(cluster, running["three"]) == 2, what="another attempt")
    later = _submit(cluster, jobs=1)
    assert _ended(cluster, *running.values(), *later) == ["succeeded"] * 4
    assert _attempt(cluster, running["one"]) == _attempt(cluster, running["two"]) == 1
    (listed,) = [node for node in cluster.ray_nodes() if node["node_id"] == nodes["three"].id]
    assert listed["state"] == "DEAD"
    wait_for(lambda: _slots(variables) == 3, what="one slot less")


def test_a_drained_node_ends_what_it_has_and_takes_nothing_more(cluster: RayCluster, variables: dict[str, str]) -> None:
    ((drained, running),) = _placed(cluster, _submit(cluster, jobs=1)).items()
    (other,) = {"one", "two"} - {drained}
    with cluster.nodes[drained].held():
        cluster.typed(
            f"ray drain-node --address={cluster.gcs_address} --node-id={cluster.nodes[drained].id} "
            "--reason=DRAIN_NODE_REASON_PREEMPTION --reason-message=maintenance --deadline-remaining-seconds=300"
        )
        later = _submit(cluster, jobs=2)
    assert _ended(cluster, running, *later) == ["succeeded"] * 3
    assert set(_placed(cluster, later)) == {other}
    wait_for(lambda: cluster.nodes[drained].address not in cluster.addresses(), what="the drained node's leave")
    wait_for(lambda: _slots(variables) == 2, what="one slot less")


def test_up_deploys_on_a_cluster_of_the_user_s_own_and_takes_away_no_more(
    cluster: RayCluster, variables: dict[str, str], tmp_path: Path
) -> None:
    stack = RunningStack(
        data_dir=tmp_path,
        **variables,
        DREAMFORGE_MODELS_DIR=str(cluster.models_dir),
        DREAMFORGE_SELF_CHECK="true",
        RAY_ADDRESS=cluster.dashboard_url,
        RAY_AUTH_TOKEN=cluster.token,
    )
    # Serve has a port already, and keeps it.
    stack.ports["PORT"], stack.base_url = cluster.api_port, cluster.base_url
    stack.start()
    try:
        stack.wait_until_ready()
        assert (tmp_path / "self-check.png").exists()
        assert list(stack.state()["parts"]) == []
        assert stack.state()["dashboard"] == cluster.dashboard_url
        assert cluster.token not in stack.said()
        status = stack.command("status")
        assert status.returncode == 0, status.stdout
        assert f"API: {cluster.base_url} is ok" in status.stdout
        assert stack.run(params=PARAMS)["status"] == "succeeded"
        stack.send(signal.SIGTERM)
        assert stack.wait_for_end(seconds=30) == 0
    finally:
        stack.kill()
    assert cluster.status()["applications"] == {}
    assert cluster.addresses()
