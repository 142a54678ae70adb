"""`dreamforge up` over servers of one's own that cannot be used: one sentence, at once, and nothing was started."""

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis import Redis

from dreamforge.embedded.object_store import ObjectStore
from dreamforge.embedded.ports import free_port
from dreamforge.embedded.ray_head import RayHead, RayPorts
from dreamforge.embedded.valkey import Valkey
from tests.refusal import SECRET, Refusals, store_variables, web_site

SETTINGS = ["DREAMFORGE_DATABASE_URL", "DREAMFORGE_REDIS_URL", "DREAMFORGE_S3_ENDPOINT", "RAY_ADDRESS"]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Somebody listens there and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        yield listener.getsockname()[1]


@pytest.fixture(params=[200, 404, 501])
def page(request: pytest.FixtureRequest) -> Iterator[str]:
    with web_site(status=request.param) as url:
        yield url


def _variables(setting: str, place: str) -> dict[str, str]:
    """The setting, pointing to a place, with what belongs to it."""
    if setting == "DREAMFORGE_DATABASE_URL":
        return {setting: f"postgresql://painter:{SECRET}@{place}/forge"}
    if setting == "DREAMFORGE_REDIS_URL":
        return {setting: f"redis://:{SECRET}@{place}/0"}
    if setting == "DREAMFORGE_S3_ENDPOINT":
        return store_variables(f"http://{place}", secret_key=SECRET)
    return {setting: f"http://{place}", "RAY_AUTH_TOKEN": SECRET}


@pytest.mark.parametrize("setting", SETTINGS)
def test_nobody_listens(refusals: Refusals, setting: str) -> None:
    place = f"127.0.0.1:{free_port()}"
    said = refusals.sentence(setting, **_variables(setting, place))
    assert place in said
    assert "connection refused" in said.lower()


@pytest.mark.parametrize("setting", SETTINGS)
def test_nobody_answers(refusals: Refusals, silent_port: int, setting: str) -> None:
    said = refusals.sentence(setting, **_variables(setting, f"127.0.0.1:{silent_port}"))
    assert f"127.0.0.1:{silent_port}" in said
    assert "time" in said.lower()


@pytest.mark.parametrize("setting", SETTINGS)
def test_nobody_has_that_name(refusals: Refusals, setting: str) -> None:
    said = refusals.sentence(setting, **_variables(setting, "nowhere.invalid:1234"))
    assert "nowhere.invalid:1234" in said


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_url_at_all(refusals: Refusals, setting: str) -> None:
    variables = {**_variables(setting, "127.0.0.1:1"), setting: f"painter:{SECRET}@127.0.0.1:1"}
    assert "is not like" in refusals.sentence(setting, **variables)


# Redis


def _refuse_redis(refusals: Refusals, url: str) -> str:
    return refusals.sentence("DREAMFORGE_REDIS_URL: Redis at 127.0.0.1:", DREAMFORGE_REDIS_URL=url)


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.mark.parametrize("credentials", [":wr0ng@", "stranger:wr0ng@"])
def test_a_wrong_password_of_redis(refusals: Refusals, redis_url: str, credentials: str) -> None:
    said = _refuse_redis(refusals, f"redis://{credentials}127.0.0.1:{urlsplit(redis_url).port}/0")
    assert "invalid username-password pair" in said


def test_no_password_where_redis_wants_one(refusals: Refusals, redis_url: str) -> None:
    assert "it asks for a password" in _refuse_redis(refusals, f"redis://127.0.0.1:{urlsplit(redis_url).port}/0")


def test_a_redis_database_that_is_not_there(refusals: Refusals, redis_url: str) -> None:
    assert "out of range" in _refuse_redis(refusals, redis_url.removesuffix("/0") + "/99")


@pytest.mark.parametrize("rights", ["+@all -@write ~*", "+@all -blmove ~*", "+@all ~other:*"])
def test_a_redis_user_without_the_rights(refusals: Refusals, redis_url: str, redis: Redis, rights: str) -> None:
    redis.execute_command("ACL", "SETUSER", "painter", "reset", "on", f">{SECRET}", *rights.split())
    said = _refuse_redis(refusals, f"redis://painter:{SECRET}@127.0.0.1:{urlsplit(redis_url).port}/0")
    assert "permissions" in said


def test_a_redis_that_is_a_replica(refusals: Refusals, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("replica")
    server = Valkey(data=folder / "data", port=free_port(), log=folder / "log", password_file=folder / "password")
    server.start()
    try:
        server.wait_ready()
        with Redis.from_url(server.url()) as client:
            client.replicaof("127.0.0.1", str(free_port()))
        assert "read only replica" in _refuse_redis(refusals, server.url())
    finally:
        server.stop()


# The object store


def _refuse_store(refusals: Refusals, variables: dict[str, str]) -> str:
    return refusals.sentence("DREAMFORGE_S3_ENDPOINT: The object store at 127.0.0.1:", **variables)


@pytest.mark.parametrize("wrong", [{"access_key": "stranger"}, {"secret_key": SECRET}])
def test_a_wrong_key_of_the_object_store(refusals: Refusals, object_store: ObjectStore, wrong: dict[str, str]) -> None:
    right = {"access_key": object_store.access_key, "secret_key": object_store.secret_key}
    said = _refuse_store(refusals, store_variables(object_store.endpoint, **{**right, **wrong}))
    assert "DREAMFORGE_S3_ACCESS_KEY and _S3_SECRET_KEY must be right" in said


def test_a_web_site_in_the_object_store_s_place(refusals: Refusals, page: str) -> None:
    said = _refuse_store(refusals, store_variables(page))
    assert any(words in said for words in ("as no S3 server does", "does not give back", "answered MethodNotAllowed"))


def test_no_name_of_a_bucket(refusals: Refusals, object_store: ObjectStore) -> None:
    keys = {"access_key": object_store.access_key, "secret_key": object_store.secret_key}
    variables = {**store_variables(object_store.endpoint, **keys), "DREAMFORGE_S3_BUCKET": "No Bucket"}
    refusals.sentence("DREAMFORGE_S3_BUCKET", **variables)


# Ray


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A Ray cluster that asks for a token."""
    folder = tmp_path_factory.mktemp("ray")
    head = RayHead(
        data_dir=folder,
        ports=RayPorts(gcs=free_port(), dashboard=free_port()),
        gpus=0,
        log=folder / "log",
        token_file=folder / "token",
        variables={},
    )
    head.start()
    try:
        head.wait_ready()
        yield head
    finally:
        head.stop()


def _refuse_ray(refusals: Refusals, variables: dict[str, str]) -> str:
    return refusals.sentence("RAY_ADDRESS: Ray's dashboard at 127.0.0.1:", **variables)


def test_a_wrong_token_of_ray(refusals: Refusals, ray: RayHead) -> None:
    said = _refuse_ray(refusals, {"RAY_ADDRESS": ray.dashboard_url, "RAY_AUTH_TOKEN": SECRET})
    assert "it refuses the token of RAY_AUTH_TOKEN" in said


def test_no_token_where_ray_wants_one(refusals: Refusals, ray: RayHead) -> None:
    assert "it asks for a token" in _refuse_ray(refusals, {"RAY_ADDRESS": f"{ray.dashboard_url}/"})


def test_a_web_site_in_the_dashboard_s_place(refusals: Refusals, page: str) -> None:
    assert "is no Ray dashboard" in _refuse_ray(refusals, {"RAY_ADDRESS": page})


def test_a_file_for_the_token_that_is_not_there(refusals: Refusals, tmp_path: Path) -> None:
    refusals.sentence(
        "RAY_AUTH_TOKEN_PATH", RAY_ADDRESS="http://127.0.0.1:1", RAY_AUTH_TOKEN_PATH=str(tmp_path / "no-such-file")
    )


def test_a_cluster_without_the_servers_that_it_was_started_with(refusals: Refusals, ray: RayHead) -> None:
    refusals.sentence(
        "RAY_ADDRESS names a cluster of yours; set DREAMFORGE_DATABASE_URL, DREAMFORGE_REDIS_URL, "
        "DREAMFORGE_S3_ENDPOINT too",
        RAY_ADDRESS=ray.dashboard_url,
        RAY_AUTH_TOKEN=ray.token(),
    )
