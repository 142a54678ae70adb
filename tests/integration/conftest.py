"""The tiny model, built once, a supervisor that works with it, and the application over real servers."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from dreamforge.api.app import create_app
from dreamforge.api.state import ApiState
from dreamforge.api.tail import StreamRules
from dreamforge.blobs import Blobs
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.jobs.frames import PrepareStep
from dreamforge.queue import connect
from dreamforge.store.engine import open_engine
from dreamforge.store.models import NewModel
from tests.hubs.huggingface import FakeHuggingFace
from tests.integration.bench import Bench, wait_for_savers
from tests.integration.dispatching import Dispatching
from tests.integration.door import api_state
from tests.integration.factories import Jobs, a_model
from tests.integration.installing import Place, a_bucket
from tests.integration.live_api import FAST, LiveApi, MakeApi

if TYPE_CHECKING:
    from tests.integration.checkpoints import Pixels


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model's folder."""
    folder = tmp_path_factory.mktemp("models") / "sdxl-tiny"
    subprocess.run([sys.executable, "-m", "dreamforge.runners.tiny", str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture
def bench(database_url: str, object_store: ObjectStore, tiny_model: Path, tmp_path: Path) -> Iterator[Bench]:
    """A supervisor's place of work, with no jobs yet."""
    engine = open_engine(database_url, application="tests", pool_size=8)
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE jobs, models CASCADE"))
    yield Bench(engine=engine, jobs=Jobs(database_url), store=object_store, model_path=tiny_model, folder=tmp_path)
    wait_for_savers()
    engine.dispose()


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A database with no jobs, models and heartbeats in it yet."""
    engine = open_engine(database_url, application="tests", pool_size=12)
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE jobs, models, heartbeats CASCADE"))
    yield engine
    engine.dispose()


@pytest.fixture
def jobs(database_url: str) -> Jobs:
    """The API's store."""
    return Jobs(database_url)


@pytest.fixture
def model(engine: Engine) -> NewModel:
    """The one model there is."""
    return a_model(engine, name="tiny")


@pytest.fixture
def state(database_url: str, redis_url: str, object_store: ObjectStore) -> ApiState:
    """What one replica's routes work with."""
    return api_state(database_url, redis_url, object_store.blobs())


@pytest.fixture
def client(state: ApiState, model: NewModel) -> Iterator[TestClient]:
    """One replica, without a server around it."""
    assert model
    with TestClient(create_app(state), follow_redirects=False) as client:
        yield client


@pytest.fixture
def make_api(database_url: str, redis_url: str, object_store: ObjectStore, model: NewModel) -> MakeApi:
    """Makes replicas with a server around them, and a model."""
    assert model

    def make(url: str = database_url, streams: StreamRules = FAST) -> LiveApi:
        return LiveApi(database_url=url, redis_url=redis_url, blobs=object_store.blobs(), streams=streams)

    return make


@pytest.fixture
def api(make_api: MakeApi) -> Iterator[LiveApi]:
    """One such replica."""
    with make_api() as api:
        yield api


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster with two GPUs that are none."""
    # "local": another of this machine, of other tests, is none of theirs.
    ray.init(
        address="local", num_cpus=1, num_gpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False
    )
    yield
    ray.shutdown()


@pytest.fixture
def service(engine: Engine, database_url: str, redis_url: str) -> Iterator[Dispatching]:
    """A dispatcher that was not started yet."""
    connect(redis_url).flushall()
    service = Dispatching(engine=engine, database_url=database_url, redis_url=redis_url)
    yield service
    service.stop()


@pytest.fixture(scope="module")
def call(tiny_model: Path) -> PrepareStep:
    """What a runner is told to draw with the tiny model as a folder."""
    from tests.integration.checkpoints import of_folder  # noqa: PLC0415 - torch, only where it is needed

    return of_folder(tiny_model)


@pytest.fixture(scope="module")
def file_call(call: PrepareStep, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> PrepareStep:
    """The same with the tiny model as one file."""
    from tests.integration.checkpoints import of_file  # noqa: PLC0415 - as above

    return of_file(call, tiny_model, tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def plain(call: PrepareStep) -> "Pixels":
    """What the tiny model draws then."""
    from tests.integration.checkpoints import draw  # noqa: PLC0415 - as above

    return draw(call)


@pytest.fixture
def place(engine: Engine, database_url: str, object_store: ObjectStore, tmp_path: Path) -> Iterator[Place]:
    """A models' folder with nothing in it, and a hub."""
    assert engine
    blobs = a_bucket(object_store.settings())
    Blobs(blobs).ensure_bucket()
    with FakeHuggingFace() as hub:
        yield Place(database_url, blobs, hub, tmp_path)
