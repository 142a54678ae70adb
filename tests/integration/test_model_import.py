"""`dreamforge model import|default|enable|disable|remove|list|show`: models of the user's own."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from dreamforge.api.state import ApiState
from dreamforge.cli.configuration import sentence_of
from dreamforge.embedded import builtin
from dreamforge.embedded.model_import import ImportRequest, import_model, name_of
from dreamforge.errors import Conflict, ModelCorrupt, ModelDisabled, ModelIncompatible, ModelNotInstalled, UnknownModel
from dreamforge.models.weights import Kind
from dreamforge.settings import Settings
from dreamforge.store.models import ModelRegistry, NewModel, Registered
from tests import weights
from tests.integration.cli import command, environment, ran, succeeded
from tests.integration.door import GOOD, served
from tests.integration.factories import Jobs, a_job, a_model, at_once
from tests.terminal import Terminal


def _model(database_url: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DREAMFORGE_")}
    return subprocess.run(
        command("model", *arguments),
        env={**inherited, "DREAMFORGE_DATABASE_URL": database_url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _done(database_url: str, *arguments: str | Path) -> str:
    result = _model(database_url, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def _refused(database_url: str, *arguments: str | Path) -> str:
    result = _model(database_url, *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr
    return result.stderr


def _known(client: TestClient, reference: str) -> dict[str, Any]:
    return client.get(f"/v1/models/{reference}").json()


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
    said = _done(database_url, "import", folder)
    assert "✓ dreamshaper-xl@1, sdxl, fp32, " in said
    assert "--model dreamshaper-xl" in said
    told = _known(client, "dreamshaper-xl")
    assert (told["kind"], told["installed"], told["default"]) == ("sdxl", True, False)
    assert told["source_uri"] == folder.as_uri()
    assert told["size_bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert told["parameters_schema"]["properties"]["width"]["default"] == 64
    assert told["metadata"]["weights"]["cross_attention_dim"] == 64
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert _known(client, str(model.id))["default"] is True

    _done(database_url, "import", folder, "--version", "2", "--default")
    job = client.post("/v1/jobs", json=GOOD).json()
    assert job["model_id"] == _known(client, "dreamshaper-xl@2")["id"]


def test_a_file_becomes_a_model(client: TestClient, engine: Engine, database_url: str, checkpoint: Path) -> None:
    said = json.loads(_model(database_url, "import", checkpoint, "--json", "--kind", "checkpoint").stdout)
    told = _known(client, "My-XL-v2")
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
    assert f"dreamforge model show a-{kind}" in _done(database_url, "import", path, "--kind", kind)
    told = _known(client, f"a-{kind}")
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
    assert _refused(database_url, "import", path).startswith("✗ model_corrupt: x.safetensors is a pickle")


def test_the_first_checkpoint_is_the_default_and_takes_that_from_the_built_in_one(
    engine: Engine, database_url: str, tiny_model: Path, tmp_path: Path, checkpoint: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "models" / "sdxl" / "sdxl-tiny@1")
    (tmp_path / "models" / "sdxl" / "sdxl-tiny@1" / "descriptor.json").touch()
    registry = ModelRegistry(engine=engine)
    settings = Settings(data_dir=tmp_path, models_dir=tmp_path / "models")
    assert builtin.install_if_empty(settings, database_url) == builtin.NOTICE
    assert "Jobs that name no model take it" in _done(database_url, "import", checkpoint)
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
    _over(jobs, id)
    assert registry.remove(id) is False
    assert not registry.has_any_installed()
    assert builtin.install_if_empty(settings, database_url) == builtin.NOTICE
    assert (registry.find("sdxl-tiny").id, registry.has_any_installed()) == (id, True)


def test_the_same_content_again_changes_only_where_it_lies(
    client: TestClient, engine: Engine, database_url: str, checkpoint: Path, tmp_path: Path
) -> None:
    import_model(ImportRequest(path=checkpoint, name="my"), database_url)
    first = _known(client, "my")
    ModelRegistry(engine=engine).set_enabled(uuid.UUID(first["id"]), False)
    moved = Path(shutil.move(checkpoint, tmp_path / "moved.safetensors"))
    assert "It was known already" in _done(database_url, "import", moved, "--name", "my")
    now = _known(client, "my")
    assert (now["id"], now["enabled"], now["source_uri"]) == (first["id"], False, moved.as_uri())
    weights.write(moved, weights.sdxl_checkpoint(), dtype="F32")
    refused = _refused(database_url, "import", moved, "--name", "my")
    assert "conflict: There is a model my@1 already, with other content" in refused
    assert _known(client, "my")["checkpoint_hash"] == first["checkpoint_hash"]


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


def test_a_model_is_switched_off_and_on_without_a_restart(
    client: TestClient, model: NewModel, engine: Engine, database_url: str
) -> None:
    other = a_model(engine, name="other")
    assert "other@1 is switched off" in _done(database_url, "disable", "other")
    refused = client.post("/v1/jobs", json={**GOOD, "model_id": "other"}).json()["error"]
    assert (refused["code"], refused["message"]) == ("model_disabled", "The model 'other' is switched off.")
    assert "model_disabled: other@1 is switched off" in _refused(database_url, "default", "other")
    assert "dreamforge model default" not in _done(database_url, "enable", str(other.id))
    assert client.post("/v1/jobs", json={**GOOD, "model_id": "other"}).status_code == 201
    assert "dreamforge model default other@1" in _refused(database_url, "disable", "tiny")
    assert "Jobs that name no model take other@1" in _done(database_url, "default", "other@1")
    _done(database_url, "disable", "tiny")
    assert (_known(client, "tiny")["enabled"], _known(client, "tiny")["default"]) == (False, False)
    assert "unknown_model: No model 'nobody'" in _refused(database_url, "enable", "nobody")
    assert client.post("/v1/jobs", json=GOOD).json()["model_id"] == str(other.id)
    assert model.name == "tiny"


def test_the_only_model_may_be_switched_off_and_removed(engine: Engine, model: NewModel) -> None:
    registry = ModelRegistry(engine=engine)
    a_model(engine, name="a-lora", kind="lora", capabilities=())
    registry.set_enabled(model.id, False)
    assert a_model(engine, name="next").id != model.id
    assert registry.is_default(name="next", version="1"), "the default could not be used"
    assert registry.remove(model.id) is True
    assert registry.remove(registry.find("next").id) is True
    assert not registry.has_any_installed()


def test_a_model_is_forgotten_and_its_files_stay(
    client: TestClient, model: NewModel, database_url: str, checkpoint: Path
) -> None:
    assert model
    import_model(ImportRequest(path=checkpoint, name="my"), database_url)
    unasked = _model(database_url, "remove", "my")
    assert (unasked.returncode, "say --yes" in unasked.stderr) == (1, True)
    assert "my@1 is removed" in _done(database_url, "remove", "my", "--yes")
    assert client.get("/v1/models/my").status_code == 404
    assert checkpoint.is_file()
    assert import_model(ImportRequest(path=checkpoint, name="my"), database_url).registered.is_new


def test_it_is_asked_before_a_model_is_removed(engine: Engine, model: NewModel, database_url: str) -> None:
    told = {**environment("http://127.0.0.1:1"), "DREAMFORGE_DATABASE_URL": database_url}
    for answer in ("n", "y"):
        with Terminal(command("model", "remove", "tiny"), environment=told) as terminal:
            terminal.wait_for("Remove tiny@1? Its files stay.")
            terminal.type(f"{answer}\n")
            assert terminal.wait_for_end() == (0 if answer == "y" else 1)
        is_there = ModelRegistry(engine=engine).is_installed(name=model.name, version="1")
        assert is_there is (answer == "n")


def test_a_model_that_jobs_tell_of_stays_listed_and_one_they_wait_for_stays(
    client: TestClient, engine: Engine, model: NewModel, jobs: Jobs, database_url: str
) -> None:
    a_model(engine, name="other")
    job = client.post("/v1/jobs", json={**GOOD, "model_id": "other"}).json()
    assert "conflict: 1 job waits for it" in _refused(database_url, "remove", "other", "--yes")
    jobs.cancel(uuid.UUID(job["id"]))
    assert "It is still listed" in _done(database_url, "remove", "other", "--yes")
    told = _known(client, "other")
    assert (told["installed"], told["enabled"], told["default"]) == (False, True, False)
    assert client.get(f"/v1/jobs/{job['id']}").json()["model_id"] == told["id"]
    assert "model_not_installed" in _refused(database_url, "default", "other")
    refused = client.post("/v1/jobs", json={**GOOD, "model_id": "other"}).json()["error"]
    assert refused["code"] == "model_not_installed"
    registered = ModelRegistry(engine=engine).register(replace(model, name="other"))
    assert (registered.is_new, str(registered.id)) == (False, told["id"])
    assert _known(client, "other")["installed"] is True


def test_a_job_whose_model_goes_away_meanwhile_is_told_so(engine: Engine, model: NewModel, jobs: Jobs) -> None:
    job = a_job(model)
    assert ModelRegistry(engine=engine).remove(model.id) is True
    with pytest.raises(UnknownModel, match="was just removed"):
        jobs.submit(job)


def test_a_name_of_several_versions_has_to_be_told_apart(engine: Engine, model: NewModel, jobs: Jobs) -> None:
    registry = ModelRegistry(engine=engine)
    other = a_model(engine, name="tiny", version="2")
    with pytest.raises(Conflict, match="say which, of tiny@1, tiny@2"):
        registry.find("tiny")
    assert registry.find("tiny@2").id == registry.find(str(other.id)).id == other.id
    _over(jobs, other.id)
    assert registry.remove(other.id) is False
    assert registry.find("tiny").id == model.id, "the one that is installed"
    with pytest.raises(ModelNotInstalled):
        registry.make_default(other.id)


def test_what_cannot_be_the_default_is_refused(engine: Engine, model: NewModel) -> None:
    registry = ModelRegistry(engine=engine)
    lora = a_model(engine, name="l", kind="lora", capabilities=())
    off = a_model(engine, name="off")
    registry.set_enabled(off.id, False)
    for id, error in ((lora.id, ModelIncompatible), (off.id, ModelDisabled), (uuid.UUID(int=5), UnknownModel)):
        with pytest.raises(error):
            registry.make_default(id)
    for change in (registry.remove, lambda id: registry.set_enabled(id, True)):
        with pytest.raises(UnknownModel):
            change(uuid.UUID(int=5))
    assert registry.is_default(name=model.name, version="1")


@pytest.fixture
def url(state: ApiState, model: NewModel) -> Iterator[str]:
    """A service's address."""
    assert model
    with served(state) as url:
        yield url


def test_models_are_listed_and_shown(
    url: str, engine: Engine, model: NewModel, database_url: str, tmp_path: Path
) -> None:
    path = weights.write(tmp_path / "film[1].safetensors", weights.peft_lora())
    _done(database_url, "import", path, "--name", "film")
    ModelRegistry(engine=engine).set_enabled(ModelRegistry(engine=engine).find("film").id, False)
    listed = succeeded(url, "model", "list")
    assert "ready, default" in listed
    assert "disabled" in listed
    shown = succeeded(url, "model", "show", "film")
    for words in ("film@1", "cross attention dim", "2048", "film%5B1%5D.safetensors"):
        assert words in shown
    descriptor = json.loads(succeeded(url, "model", "show", "tiny@1", "--json"))
    assert (descriptor["id"], descriptor["parameters_schema"]["title"]) == (str(model.id), "SDXL")
    assert len(json.loads(succeeded(url, "model", "list", "--json"))["items"]) == 2
    unknown = ran(url, "model", "show", "no/body")
    assert (unknown.returncode, "not_found" in unknown.stderr) == (1, True)


@pytest.mark.parametrize("option", ["--name", "--version"])
def test_a_name_is_a_name(database_url: str, checkpoint: Path, option: str) -> None:
    assert "invalid_request: 'a@b' is no name" in _refused(database_url, "import", checkpoint, option, "a@b")


@pytest.mark.parametrize(
    ("path", "name"),
    [("x/My XL (v2).safetensors", "My-XL-v2"), ("sd_xl_base_1.0.safetensors", "sd_xl_base_1.0"), ("灯台.x", "")],
)
def test_a_file_s_name_becomes_the_model_s(path: str, name: str) -> None:
    assert name_of(Path(path)) == name


def test_without_a_database_it_says_what_to_do(checkpoint: Path, tmp_path: Path) -> None:
    for arguments in (["import", str(checkpoint)], ["default", "x"], ["remove", "x", "--yes"]):
        result = subprocess.run(
            [sys.executable, "-m", "dreamforge.cli.main", "model", *arguments],
            env={"PATH": os.environ["PATH"], "DREAMFORGE_DATA_DIR": str(tmp_path / "data")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode, "Nothing is running over" in result.stderr) == (1, True)


def _over(jobs: Jobs, model_id: uuid.UUID) -> None:
    """Have a job tell of the model that is over."""
    model = NewModel(
        id=model_id, name="", kind="", version="", checkpoint_hash=None, source_uri="", local_path="",
        parameters_schema={}, capabilities=(), metadata={}, files=(),
    )  # fmt: skip
    job = a_job(model)
    jobs.submit(job)
    jobs.cancel(job.id)


def _defaults(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM models WHERE is_default")).scalar_one()
