"""`dreamforge models add`: a model of the user's own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from dreamforge.store.models import NewModel


def _add(database_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DREAMFORGE_")}
    return subprocess.run(
        [sys.executable, "-m", "dreamforge.cli.main", "models", "add", *arguments],
        env={**inherited, "DREAMFORGE_DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A model as diffusers saves it."""
    return Path(shutil.copytree(tiny_model, tmp_path / "dreamshaper-xl"))


def test_a_folder_becomes_the_model_that_jobs_find(
    client: TestClient, model: NewModel, database_url: str, folder: Path
) -> None:
    assert model.name == "tiny"
    result = _add(database_url, str(folder))
    assert result.returncode == 0, result.stderr
    assert "✓ dreamshaper-xl@1, " in result.stderr
    told = client.get("/v1/models/dreamshaper-xl").json()
    assert (told["kind"], told["installed"], told["default"]) == ("sdxl", True, True)
    assert told["source_uri"] == folder.as_uri()
    assert told["size_bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert told["parameters_schema"]["properties"]["width"]["default"] == 1024
    assert client.get(f"/v1/models/{model.id}").json()["default"] is False
    job = client.post("/v1/jobs", json={"type": "generate", "params": {"prompt": "x"}}).json()
    assert job["model_id"] == told["id"]

    again = _add(database_url, str(folder))
    assert (again.returncode, "There is a model dreamshaper-xl@1 already." in again.stderr) == (1, True)
    second = _add(database_url, str(folder), "--version", "2", "--no-default")
    assert second.returncode == 0, second.stderr
    assert client.get("/v1/models/dreamshaper-xl@2").json()["default"] is False


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "is no model in diffusers' layout"),
        (lambda folder: (folder / "model_index.json").write_text("["), "is no model in diffusers' layout"),
        (
            lambda folder: (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"})),
            "is a FluxPipeline; Dream Forge draws with a StableDiffusionXLPipeline.",
        ),
        (lambda folder: shutil.rmtree(folder / "unet"), "has no weights in safetensors files"),
    ],
    ids=["nothing", "broken", "another pipeline", "no weights"],
)
def test_what_is_no_such_model_is_told(database_url: str, folder: Path, change: object, words: str) -> None:
    assert callable(change)
    change(folder)
    result = _add(database_url, str(folder))
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_name_is_a_name(database_url: str, folder: Path) -> None:
    result = _add(database_url, str(folder), "--name", "a@b")
    assert (result.returncode, "'a@b' is no name" in result.stderr) == (1, True)


def test_without_a_database_it_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "dreamforge.cli.main", "models", "add", str(folder)],
        env={"PATH": os.environ["PATH"], "DREAMFORGE_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, "Nothing is running over" in result.stderr) == (1, True)
