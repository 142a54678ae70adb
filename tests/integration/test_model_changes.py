"""`dreamforge model default|enable|disable|remove|list|show`: what becomes of models that are known."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from dreamforge.api.state import ApiState
from dreamforge.errors import Conflict, ModelDisabled, ModelIncompatible, ModelNotInstalled, UnknownModel
from dreamforge.installation.model_import import ImportRequest, import_model
from dreamforge.store.models import ModelRegistry, NewModel
from tests import weights
from tests.integration.cli import command, environment, ran, succeeded
from tests.integration.door import GOOD, served
from tests.integration.factories import Jobs, a_job, a_model, at_once
from tests.integration.model_command import done, known, over, refusal_of, run_model
from tests.terminal import Terminal


@pytest.fixture
def model(engine: Engine) -> NewModel:
    """The default, which is not the built-in one."""
    return a_model(engine, name="tiny", source_uri="file:///nowhere")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint in one file."""
    return weights.write(tmp_path / "My XL (v2).safetensors", weights.sdxl_checkpoint())


def test_a_model_is_switched_off_and_on_without_a_restart(
    client: TestClient, model: NewModel, engine: Engine, database_url: str
) -> None:
    other = a_model(engine, name="other")
    assert "other@1 is switched off" in done(database_url, "disable", "other")
    refused = client.post("/v1/jobs", json={**GOOD, "model_id": "other"}).json()["error"]
    assert (refused["code"], refused["message"]) == ("model_disabled", "The model 'other' is switched off.")
    assert "model_disabled: other@1 is switched off" in refusal_of(database_url, "default", "other")
    assert "dreamforge model default" not in done(database_url, "enable", str(other.id))
    assert client.post("/v1/jobs", json={**GOOD, "model_id": "other"}).status_code == 201
    assert "dreamforge model default other@1" in refusal_of(database_url, "disable", "tiny")
    assert "Jobs that name no model take other@1" in done(database_url, "default", "other@1")
    done(database_url, "disable", "tiny")
    assert (known(client, "tiny")["enabled"], known(client, "tiny")["default"]) == (False, False)
    assert "unknown_model: No model 'nobody'" in refusal_of(database_url, "enable", "nobody")
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
    unasked = run_model(database_url, "remove", "my")
    assert (unasked.returncode, "say --yes" in unasked.stderr) == (1, True)
    assert "my@1 is removed" in done(database_url, "remove", "my", "--yes")
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
    assert "conflict: 1 job waits for it" in refusal_of(database_url, "remove", "other", "--yes")
    jobs.cancel(uuid.UUID(job["id"]))
    assert "It is still listed" in done(database_url, "remove", "other", "--yes")
    told = known(client, "other")
    assert (told["installed"], told["enabled"], told["default"]) == (False, True, False)
    assert client.get(f"/v1/jobs/{job['id']}").json()["model_id"] == told["id"]
    assert "model_not_installed" in refusal_of(database_url, "default", "other")
    refused = client.post("/v1/jobs", json={**GOOD, "model_id": "other"}).json()["error"]
    assert refused["code"] == "model_not_installed"
    refused = client.post(f"/v1/jobs/{job['id']}/retry").json()["error"]
    assert (refused["code"], refused["message"]) == (
        "conflict",
        "The job's model was removed: import it again, and then retry.",
    )
    registered = ModelRegistry(engine=engine).register(replace(model, name="other"))
    assert (registered.is_new, str(registered.id)) == (False, told["id"])
    assert known(client, "other")["installed"] is True


NAMING: dict[str, Callable[[str], dict[str, Any]]] = {
    "lora": lambda reference: {"loras": [{"id": "other@1", "weight": 1.0}, {"id": reference, "weight": 0.5}]},
    "vae": lambda reference: {"vae": reference},
}


@pytest.mark.parametrize("kind", NAMING)
def test_what_goes_with_a_checkpoint_stays_while_jobs_name_it_and_keeps_its_name_for_those_that_did(
    engine: Engine, model: NewModel, jobs: Jobs, kind: str
) -> None:
    registry = ModelRegistry(engine=engine)
    grain, later, _ = (
        a_model(engine, name=name, version=version, kind=kind, capabilities=())
        for name, version in (("grain", "1"), ("grain", "2"), ("other", "1"))
    )
    job = a_job(model, **NAMING[kind]("grain@1"))
    jobs.submit(job)
    with pytest.raises(Conflict, match="1 job waits for it"):
        registry.remove(grain.id)
    assert registry.remove(later.id) is True, "no job names this version"
    jobs.cancel(job.id)
    assert registry.remove(grain.id) is False
    assert not registry.is_installed(name="grain", version="1")
    with pytest.raises(UnknownModel, match="grain@1 was just removed"):
        jobs.submit(a_job(model, **NAMING[kind]("grain@1")))
    with pytest.raises(Conflict, match="The model grain@1 was removed: import it again"):
        jobs.retry(job.id)
    with pytest.raises(Conflict, match="There is a model grain@1 already, with other content"):
        registry.register(replace(grain, id=uuid.uuid4(), checkpoint_hash="ef" * 32))
    registry.register(replace(grain, id=uuid.uuid4()))
    assert registry.find("grain").id == grain.id
    assert jobs.retry(job.id) is not None


@pytest.mark.parametrize("kind", NAMING)
def test_a_job_whose_lora_or_vae_goes_away_meanwhile_is_told_so(
    engine: Engine, model: NewModel, jobs: Jobs, kind: str
) -> None:
    grain, _ = (a_model(engine, name=name, kind=kind, capabilities=()) for name in ("grain", "other"))
    assert ModelRegistry(engine=engine).remove(grain.id) is True
    with pytest.raises(UnknownModel, match="grain@1 was just removed"):
        jobs.submit(a_job(model, **NAMING[kind]("grain@1")))


@pytest.mark.parametrize("kind", NAMING)
def test_a_job_and_the_removal_of_what_it_names_wait_for_each_other(
    engine: Engine, database_url: str, model: NewModel, kind: str
) -> None:
    grain, _ = (a_model(engine, name=name, kind=kind, capabilities=()) for name in ("grain", "other"))
    registry = ModelRegistry(engine=engine)
    submitted, removed = at_once(
        lambda: Jobs(database_url).submit(a_job(model, **NAMING[kind]("grain@1"))), lambda: registry.remove(grain.id)
    )
    is_there = registry.is_installed(name="grain", version="1")
    assert (isinstance(submitted, UnknownModel), isinstance(removed, Conflict)) == (not is_there, is_there)


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
    over(jobs, other.id)
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
    done(database_url, "import", path, "--name", "film")
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


def test_without_a_database_it_says_what_to_do(checkpoint: Path, tmp_path: Path) -> None:
    downloaded = ["download", "hf:org/repo"]
    for arguments in (["import", str(checkpoint)], ["default", "x"], ["remove", "x", "--yes"], downloaded):
        result = _without_a_service(tmp_path, *arguments)
        assert (result.returncode, "Nothing is running over" in result.stderr) == (1, True)


def test_what_is_no_reference_is_told_whether_anything_runs_or_not(tmp_path: Path) -> None:
    result = _without_a_service(tmp_path, "download", "https://civitai.com/models/277058?modelVersionId=1920523")
    assert (result.returncode, "Write that source as civitai:277058@1920523" in result.stderr) == (1, True)


def _without_a_service(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dreamforge.cli.main", "model", *arguments],
        env={"PATH": os.environ["PATH"], "DREAMFORGE_DATA_DIR": str(folder / "data")},
        capture_output=True,
        text=True,
        check=False,
    )
