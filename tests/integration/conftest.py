"""The tiny model, built once, and a supervisor that works with it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from dreamforge.embedded.object_store import ObjectStore
from dreamforge.store.engine import open_engine
from tests.integration.bench import Bench
from tests.integration.factories import Jobs


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
    engine.dispose()
