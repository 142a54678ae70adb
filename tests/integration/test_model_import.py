"""`dreamforge model import`: models of the user's own."""

import json
import os
import pickle
import shutil
import subprocess
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from dreamforge.cli.configuration import sentence_of
from dreamforge.embedded import builtin
from dreamforge.errors import Conflict, ModelCorrupt, ModelIncompatible
from dreamforge.installation.model_import import ImportRequest, import_model, name_of
from dreamforge.models.weights import Kind
from dreamforge.settings import Settings
from dreamforge.store.models import ModelRegistry, NewModel, Registered
from tests import weights
from tests.integration.cli import command
from tests.integration.door import GOOD
from tests.integration.factories import Jobs, a_model, at_once
from tests.integration.model_command import done, known, over, refusal_of, run_model


@pytest.fixture
def model(engine: Engine) -> NewModel:
    """The default, which is not the built-in one."""
    return a_model(engine, name="tiny", source_uri="file:///nowhere")


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A model as diffusers saves it."""
    return Path(shutil.copytree(tiny_model, tmp_path / "dreamshaper-xl"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint in one file."""
    return weights.write(tmp_path / "My XL (v2).safetensors", weights.sdxl_checkpoint())


def test_a_folder_becomes_a_model_and_stays_as_it_is(
    client: TestClient, model: NewModel, database_url: str, folder: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    said = done(database_url, "import", folder)
    assert "✓ dreamshaper-xl@1, sdxl, fp32, " in said
    assert "--model dreamshaper-xl" in said
    told = known(client, "dreamshaper-xl")
    assert (told["kind"], told["installed"], told["default"]) == ("sdxl", True, False)
    assert told["source_uri"] == folder.as_uri()
    assert told["size_bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert told["parameters_schema"]["properties"]["width"]["default"] == 64
    assert told["metadata"]["weights"]["cross_attention_dim"] == 80
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert known(client, str(model.id))["default"] is True

    done(database_url, "import", folder, "--version", "2", "--default")
    job = client.post("/v1/jobs", json=GOOD).json()
    assert job["model_id"] == known(client, "dreamshaper-xl@2")["id"]


def test_a_file_becomes_a_model(client: TestClient, engine: Engine, database_url: str, checkpoint: Path) -> None:
    said = json.loads(run_model(database_url, "import", checkpoint, "--json", "--kind", "checkpoint").stdout)
    told = known(client, "My-XL-v2")
    assert (said["id"], said["is_new"], said["checkpoint_hash"]) == (told["id"], True, told["checkpoint_hash"])
    assert said["files"] == [
        {"path": checkpoint.name, "size": checkpoint.stat().st_size, "sha256": told["checkpoint_hash"]}
    ]
    assert told["parameters_schema"]["properties"]["width"]["default"] == 1024
    with engine.connect() as connection:
        query = text("SELECT local_path, path, sha256 FROM models JOIN model_files ON model_id = id WHERE id = :id")
        row = tuple(connection.execute(query, {"id": told["id"]}).one())
    assert row == (str(checkpoint), checkpoint.name, told["checkpoint_hash"])


@pytest.mark.parametrize(("shapes", "kind"), [(weights.kohya_lora(), "lora"), (weights.vae(), "vae")])
def test_what_goes_with_a_checkpoint_is_no_default(
    client: TestClient, database_url: str, tmp_path: Path, shapes: weights.Shapes, kind: str
) -> None:
    path = weights.write(tmp_path / f"a-{kind}.safetensors", shapes)
    assert f"--{kind} a-{kind}" in done(database_url, "import", path, "--kind", kind)
    told = known(client, f"a-{kind}")
    assert (told["kind"], told["capabilities"], told["default"]) == (kind, [], False)
    refused = client.post("/v1/jobs", json={**GOOD, "model_id": f"a-{kind}"})
    assert refused.json()["error"]["code"] == "model_incompatible"
    with pytest.raises(ModelIncompatible):
        import_model(ImportRequest(path=path, name="x", as_default=True), database_url)
    assert client.get("/v1/models/x").status_code == 404, "all or nothing"


def _truncated(path: Path) -> None:
    weights.write(path, weights.sdxl_checkpoint())
    os.truncate(path, path.stat().st_size - 1)


def _headed(path: Path) -> None:
    path.write_bytes((10**8).to_bytes(8, "little") + b"{")
    os.truncate(path, 10**8 + 8)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_truncated, "model_corrupt: x.safetensors ends too soon: 1 of"),
        (_headed, "model_corrupt: x.safetensors says that its header has 100000000 bytes"),
        (lambda path: path.write_bytes(pickle.dumps({"state_dict": {}})), "model_corrupt: x.safetensors is a pickle"),
        (lambda path: path.write_bytes(b"<html>"), "model_corrupt: x.safetensors is a web page"),
        (lambda path: path.touch(), "model_corrupt: x.safetensors is empty"),
        (lambda path: path.mkdir(), "model_corrupt: x.safetensors is no model in diffusers' layout"),
        (lambda path: path.unlink(missing_ok=True), "x.safetensors: No such file or directory."),
        (
            lambda path: weights.write(path, weights.sd_checkpoint()),
            "model_incompatible: x.safetensors is a checkpoint of Stable Diffusion 1",
        ),
        (
            lambda path: weights.write(path, weights.kohya_lora(width=768)),
            "model_incompatible: x.safetensors is a LoRA for Stable Diffusion 1",
        ),
        (
            lambda path: weights.write(path, weights.kohya_lora()),
            "model_incompatible: x.safetensors is a LoRA, not a checkpoint",
        ),
    ],
    ids=["truncated", "100 MB header", "pickle", "page", "empty", "folder", "nothing", "SD 1.5", "SD LoRA", "LoRA"],
)
def test_what_is_no_such_model_is_refused_with_its_code(
    engine: Engine, database_url: str, tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "x.safetensors"
    make(path)
    with pytest.raises((ModelCorrupt, ModelIncompatible, OSError)) as caught:
        import_model(ImportRequest(path=path, kind=Kind.CHECKPOINT), database_url)
    assert words in sentence_of(caught.value)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM models")).scalar_one() == 0


def test_a_refusal_is_one_sentence(database_url: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(pickle.dumps({"state_dict": {}}))
    assert refusal_of(database_url, "import", path).startswith("✗ model_corrupt: x.safetensors is a pickle")


def test_the_first_checkpoint_is_the_default_and_takes_that_from_the_built_in_one(
    engine: Engine, database_url: str, tiny_model: Path, tmp_path: Path, checkpoint: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "models" / "sdxl" / "sdxl-tiny@1")
    (tmp_path / "models" / "sdxl" / "sdxl-tiny@1" / "descriptor.json").touch()
    registry = ModelRegistry(engine=engine)
    settings = Settings(data_dir=tmp_path, models_dir=tmp_path / "models")
    assert builtin.install_if_empty(settings, database_url) == builtin.NOTICE
    assert "Jobs that name no model take it" in done(database_url, "import", checkpoint)
    assert builtin.install_if_empty(settings, database_url) is None
    assert registry.is_default(name="My-XL-v2", version="1")
    import_model(ImportRequest(path=checkpoint, name="second"), database_url)
    assert registry.is_default(name="My-XL-v2", version="1"), "not a later one"

    registry.remove(registry.find("sdxl-tiny").id)
    builtin.install_if_empty(settings, database_url)
    assert not registry.is_installed(name="sdxl-tiny", version="1"), "it is not wanted"
    for name in ("second", "My-XL-v2"):
        registry.remove(registry.find(name).id)
    assert builtin.install_if_empty(settings, database_url) == builtin.NOTICE, "there is nothing else"


def test_the_built_in_model_comes_back_where_jobs_still_tell_of_it(
    engine: Engine, database_url: str, jobs: Jobs, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "models" / "sdxl" / "sdxl-tiny@1")
    (tmp_path / "models" / "sdxl" / "sdxl-tiny@1" / "descriptor.json").touch()
    settings = Settings(data_dir=tmp_path, models_dir=tmp_path / "models")
    builtin.install_if_empty(settings, database_url)
    registry = ModelRegistry(engine=engine)
    id = registry.find("sdxl-tiny").id
    over(jobs, id)
    assert registry.remove(id) is False
    assert not registry.has_any_installed()
    assert builtin.install_if_empty(settings, database_url) == builtin.NOTICE
    assert (registry.find("sdxl-tiny").id, registry.has_any_installed()) == (id, True)


def test_the_same_content_again_changes_only_where_it_lies(
    client: TestClient, engine: Engine, database_url: str, checkpoint: Path, tmp_path: Path
) -> None:
    import_model(ImportRequest(path=checkpoint, name="my"), database_url)
    first = known(client, "my")
    ModelRegistry(engine=engine).set_enabled(uuid.UUID(first["id"]), False)
    moved = Path(shutil.move(checkpoint, tmp_path / "moved.safetensors"))
    assert "It was known already" in done(database_url, "import", moved, "--name", "my")
    now = known(client, "my")
    assert (now["id"], now["enabled"], now["source_uri"]) == (first["id"], False, moved.as_uri())
    weights.write(moved, weights.sdxl_checkpoint(), dtype="F32")
    refused = refusal_of(database_url, "import", moved, "--name", "my")
    assert "conflict: There is a model my@1 already, with other content" in refused
    assert known(client, "my")["checkpoint_hash"] == first["checkpoint_hash"]


@pytest.fixture
def with_hidden_files(engine: Engine, database_url: str, folder: Path) -> str:
    """The hash of a model whose hidden files were counted, which they no longer are; it is called my@1."""
    known = import_model(ImportRequest(path=folder, name="my"), database_url).registered
    with engine.begin() as connection:
        query = text("INSERT INTO model_files (model_id, path, size, sha256) VALUES (:id, :path, 1, :hash)")
        for path in (".gitattributes", ".cache/huggingface/x.lock"):
            connection.execute(query, {"id": known.id, "path": path, "hash": "ef" * 32})
        connection.execute(text("UPDATE models SET checkpoint_hash = :hash"), {"hash": "ef" * 32})
    return "ef" * 32


def test_hidden_files_that_no_longer_count_make_no_other_model(
    engine: Engine, database_url: str, folder: Path, with_hidden_files: str
) -> None:
    again = import_model(ImportRequest(path=folder, name="my"), database_url)
    with engine.connect() as connection:
        (known,) = connection.scalars(text("SELECT checkpoint_hash FROM models")).all()
        files = set(connection.scalars(text("SELECT path FROM model_files")))
    assert known == again.descriptor.checkpoint_hash != with_hidden_files
    assert files == {file.path for file in again.descriptor.files}


@pytest.mark.usefixtures("with_hidden_files")
@pytest.mark.parametrize("change", ["another place", "another file", "a file less"])
def test_what_has_changed_besides_is_another_model(database_url: str, folder: Path, change: str) -> None:
    if change == "another place":
        folder = folder.rename(folder.with_name("elsewhere"))
    elif change == "another file":
        (folder / "tokenizer" / "special_tokens_map.json").write_text("{}")
    else:
        (folder / "tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(Conflict, match="There is a model my@1 already, with other content"):
        import_model(ImportRequest(path=folder, name="my"), database_url)


def test_a_terminal_does_not_obey_what_a_file_says(database_url: str, folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "\x1b[31mEvil\x9b\u202e"}))
    assert "is a \ufffd[31mEvil\ufffd\ufffd; models" in refusal_of(database_url, "import", folder)
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "unet" / "\x1b[2J.bin").touch()
    assert "! unet/\ufffd[2J.bin is a pickle" in done(database_url, "import", folder)


def test_of_imports_at_once_each_is_made_whole(engine: Engine, database_url: str, tmp_path: Path) -> None:
    paths = [
        weights.write(tmp_path / f"{dtype}.safetensors", weights.sdxl_checkpoint(), dtype=dtype)
        for dtype in ("F16", "F32", "F16")
    ]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DREAMFORGE_")}
    both = [
        subprocess.Popen(
            command("model", "import", path, "--name", "same"),
            env={**inherited, "DREAMFORGE_DATABASE_URL": database_url},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for path in paths[:2]
    ]  # fmt: skip
    ended = [(*process.communicate(timeout=60), process.returncode) for process in both]
    assert sorted(code for _, _, code in ended) == [0, 1]
    (told,) = [stderr for _, stderr, code in ended if code]
    assert "conflict: There is a model same@1 already" in told
    assert _defaults(engine) == 1


def test_registered_at_once_there_is_one_model_and_one_default(engine: Engine) -> None:
    registry = ModelRegistry(engine=engine)

    def new(number: int, **changes: Any) -> NewModel:
        seed = a_model(engine, name=f"seed-{number}", source_uri="file:/y")
        values = {"name": f"model-{number}", "source_uri": "file:/x", "id": uuid.UUID(int=100 + number), **changes}
        return replace(seed, **values)

    same = [new(number, name="same") for number in range(4)]
    told = at_once(*(lambda one=one: registry.register(one) for one in same))
    assert all(isinstance(one, Registered) for one in told)
    assert len({one.id for one in told if isinstance(one, Registered)}) == 1
    different = [new(number, checkpoint_hash=f"{number:064x}", name="other") for number in range(4, 8)]
    told = at_once(*(lambda one=one: registry.register(one, as_default=True) for one in different))
    assert sorted(type(one).__name__ for one in told) == ["Conflict"] * 3 + ["Registered"]
    many = [new(number) for number in range(8, 12)]
    told = at_once(*(lambda one=one: registry.register(one, as_default=True) for one in many))
    assert all(isinstance(one, Registered) for one in told)
    assert _defaults(engine) == 1


@pytest.mark.parametrize("option", ["--name", "--version"])
def test_a_name_is_a_name(database_url: str, checkpoint: Path, option: str) -> None:
    assert "invalid_request: 'a@b' is no name" in refusal_of(database_url, "import", checkpoint, option, "a@b")


@pytest.mark.parametrize(
    ("path", "name"),
    [("x/My XL (v2).safetensors", "My-XL-v2"), ("sd_xl_base_1.0.safetensors", "sd_xl_base_1.0"), ("灯台.x", "")],
)
def test_a_file_s_name_becomes_the_model_s(path: str, name: str) -> None:
    assert name_of(Path(path)) == name


def _defaults(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM models WHERE is_default")).scalar_one()
