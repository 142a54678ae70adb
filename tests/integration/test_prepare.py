"""`dreamforge prepare`: what an operator types before the first `serve deploy`."""

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from dreamforge.blobs import Blobs, BlobSettings
from dreamforge.embedded.object_store import ObjectStore

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def variables(tmp_path: Path, empty_database_url: str, redis_url: str, object_store: ObjectStore) -> dict[str, str]:
    return {
        "DREAMFORGE_DATA_DIR": str(tmp_path / "data"),
        "DREAMFORGE_DATABASE_URL": empty_database_url,
        "DREAMFORGE_REDIS_URL": redis_url,
        "DREAMFORGE_S3_ENDPOINT": object_store.endpoint,
        "DREAMFORGE_S3_ACCESS_KEY": object_store.access_key,
        "DREAMFORGE_S3_SECRET_KEY": object_store.secret_key,
        "DREAMFORGE_S3_BUCKET": "prepared",
        # As Ray's own commands want it on a node, which is no dashboard.
        "RAY_ADDRESS": "10.0.0.10:6380",
    }


def _start(variables: dict[str, str], *options: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DREAMFORGE_", "RAY_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "dreamforge.cli.main", "prepare", *options],
        env={**inherited, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _models(variables: dict[str, str]) -> list[tuple[str, str]]:
    with psycopg.connect(variables["DREAMFORGE_DATABASE_URL"]) as connection:
        return connection.execute("SELECT name, local_path FROM models").fetchall()


def test_nodes_that_prepare_together_make_schema_bucket_and_one_model(
    variables: dict[str, str], object_store: ObjectStore
) -> None:
    together = [_start(variables) for _ in range(2)]
    said = [process.communicate()[0] for process in together]
    assert [process.returncode for process in together] == [0, 0], said
    ((name, path),) = _models(variables)
    assert name == "sdxl-tiny"
    assert (Path(path) / "model_index.json").is_file()
    Blobs(
        BlobSettings(
            endpoint=object_store.endpoint,
            public_endpoint=object_store.endpoint,
            access_key=object_store.access_key,
            secret_key=object_store.secret_key,
            bucket="prepared",
            region="us-east-1",
        )
    ).ping()
    assert "serve deploy" in said[0]


def test_a_head_without_torch_leaves_the_model_out(variables: dict[str, str]) -> None:
    process = _start(variables, "--no-model")
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert _models(variables) == []


def test_servers_that_are_not_named_are_asked_for(variables: dict[str, str]) -> None:
    del variables["DREAMFORGE_DATABASE_URL"], variables["DREAMFORGE_REDIS_URL"]
    process = _start(variables)
    said = process.communicate()[0]
    assert process.returncode == 1
    assert "DREAMFORGE_DATABASE_URL, DREAMFORGE_REDIS_URL" in said
    assert "Traceback" not in said
