"""LoRAs and a VAE that a job names: what the API takes, and what the step is given."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text, update

from dreamforge.errors import ModelCorrupt
from dreamforge.store.attempts import AttemptStore
from dreamforge.store.models import NewModel
from dreamforge.store.step_calls import StepCall
from dreamforge.store.tables import ModelRow
from dreamforge.worker.model_files import prepare_step
from dreamforge.worker.node import Node
from tests.integration.door import assert_envelope
from tests.integration.factories import a_model, claimed

WIDE = {"weights": {"cross_attention_dim": 2048}}
NODE = Node(name="here", locks_folder=Path("/"), spool_folder=Path("/"), environment={})


def _lora(engine: Engine, name: str, **changes: Any) -> NewModel:
    return a_model(engine, **{"name": name, "kind": "lora", "capabilities": (), **changes})


def _post(client: TestClient, **params: Any) -> Any:
    return client.post("/v1/jobs", json={"type": "generate", "params": {"prompt": "a fox", **params}})


def _state(engine: Engine, model: NewModel, **state: bool) -> None:
    with engine.begin() as connection:
        connection.execute(update(ModelRow).where(ModelRow.id == model.id).values(**state))


def test_names_and_ids_become_name_and_version_and_weights_are_filled_in(client: TestClient, engine: Engine) -> None:
    by_id = _lora(engine, "grain")
    _lora(engine, "ink", version="1")
    _lora(engine, "ink", version="2")
    a_model(engine, name="fix", kind="vae", capabilities=())
    loras = [{"id": str(by_id.id)}, {"id": "ink", "weight": -0.5}]
    created = _post(client, loras=loras, vae="fix")
    assert created.status_code == 201, created.text
    params = created.json()["params"]
    assert params["loras"] == [{"id": "grain@1", "weight": 1.0}, {"id": "ink@2", "weight": -0.5}]
    assert params["vae"] == "fix@1"


def test_a_job_without_them_has_none(client: TestClient) -> None:
    params = _post(client).json()["params"]
    assert (params["loras"], params["vae"]) == ([], None)


@pytest.mark.parametrize(("switch", "code"), [("enabled", "model_disabled"), ("installed", "model_not_installed")])
def test_one_that_cannot_be_used_says_why(client: TestClient, engine: Engine, switch: str, code: str) -> None:
    _state(engine, _lora(engine, "grain"), **{switch: False})
    error = assert_envelope(_post(client, loras=[{"id": "grain"}]), 422, code)
    assert error["details"] == {"model_id": "grain", "path": "params.loras.0.id"}


def test_one_that_is_not_there_is_told_with_those_that_are(client: TestClient, engine: Engine) -> None:
    _lora(engine, "grain")
    error = assert_envelope(_post(client, loras=[{"id": "grian"}]), 422, "unknown_model")
    assert error["message"] == "No model 'grian'. Of kind lora: grain."
    error = assert_envelope(_post(client, vae="fix"), 422, "unknown_model")
    assert error["message"] == "No model 'fix'. There is none of kind vae."
    assert error["details"]["path"] == "params.vae"


def test_a_model_of_another_kind_is_refused_in_either_place(client: TestClient, engine: Engine) -> None:
    _lora(engine, "grain")
    error = assert_envelope(_post(client, loras=[{"id": "tiny"}]), 422, "model_incompatible")
    assert error["message"] == "The model 'tiny' is of kind sdxl, not lora."
    assert_envelope(_post(client, vae="grain"), 422, "model_incompatible")
    answer = client.post("/v1/jobs", json={"type": "generate", "model_id": "grain", "params": {"prompt": "a fox"}})
    assert_envelope(answer, 422, "model_incompatible")


@pytest.mark.parametrize("newest", ["lora", "vae", "sdxl"])
def test_one_name_may_stand_for_a_model_of_each_kind(client: TestClient, engine: Engine, newest: str) -> None:
    kinds = sorted(("lora", "vae", "sdxl"), key=lambda kind: kind == newest)
    for version, kind in enumerate(kinds, start=1):
        capabilities = ("generate",) if kind == "sdxl" else ()
        a_model(engine, name="pony", version=str(version), kind=kind, capabilities=capabilities)
    called = {kind: f"pony@{version}" for version, kind in enumerate(kinds, start=1)}
    params = {"prompt": "a fox", "loras": [{"id": "pony"}], "vae": "pony"}
    created = client.post("/v1/jobs", json={"type": "generate", "model_id": "pony", "params": params})
    assert created.status_code == 201, created.text
    assert created.json()["params"]["loras"][0]["id"] == called["lora"]
    assert created.json()["params"]["vae"] == called["vae"]
    assert created.json()["model_id"] == client.get(f"/v1/models/{called['sdxl']}").json()["id"]


def test_one_that_is_switched_off_is_meant_before_another_kind(client: TestClient, engine: Engine) -> None:
    _state(engine, _lora(engine, "pony"), enabled=False)
    a_model(engine, name="pony", version="2")
    assert_envelope(_post(client, loras=[{"id": "pony"}]), 422, "model_disabled")
    error = assert_envelope(_post(client, vae="pony"), 422, "model_incompatible")
    assert error["message"] == "The model 'pony' is of kind sdxl, not vae."


def test_a_lora_for_another_model_is_refused_by_what_both_say_of_their_weights(
    client: TestClient, engine: Engine
) -> None:
    a_model(engine, name="wide", metadata=WIDE)
    _lora(engine, "wide-lora", metadata=WIDE)
    _lora(engine, "narrow-lora", metadata={"weights": {"cross_attention_dim": 768}})
    _lora(engine, "silent-lora")

    def post(lora: str) -> Any:
        body = {"type": "generate", "model_id": "wide", "params": {"prompt": "a fox", "loras": [{"id": lora}]}}
        return client.post("/v1/jobs", json=body)

    error = assert_envelope(post("narrow-lora"), 422, "model_incompatible")
    assert error["message"] == (
        "The model 'narrow-lora' does not fit 'wide': its cross attention is 768 wide, the checkpoint's 2048."
    )
    assert post("wide-lora").status_code == 201
    assert post("silent-lora").status_code == 201, "what says nothing of itself is found out by its runner"


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"loras": [{"id": "grain"}] * 9}, "params.loras"),
        ({"loras": [{"id": "grain"}, {"id": "grain@1"}]}, "params.loras.1.id"),
        ({"loras": [{"id": "grain", "weight": 5}]}, "params.loras.0.weight"),
        ({"loras": [{"id": "grain", "weight": True}]}, "params.loras.0.weight"),
        ({"loras": [{"weight": 1}]}, "params.loras.0"),
        ({"loras": [{"id": "grain", "strength": 1}]}, "params.loras.0"),
        ({"loras": ["grain"]}, "params.loras.0"),
        ({"loras": {"id": "grain"}}, "params.loras"),
        ({"loras": [{"id": ""}]}, "params.loras.0.id"),
        ({"vae": 7}, "params.vae"),
        ({"vae": "x" * 300}, "params.vae"),
    ],
)
def test_bad_values_are_refused_by_their_path(
    client: TestClient, engine: Engine, params: dict[str, Any], path: str
) -> None:
    _lora(engine, "grain")
    error = assert_envelope(_post(client, **params), 422, "invalid_request")
    assert [told["path"] for told in error["details"]["errors"]] == [path]


def _call(engine: Engine) -> StepCall:
    return AttemptStore(engine=engine, fence=claimed(engine).fence).load_call()


def test_a_step_is_given_their_files_in_the_order_of_the_job(
    client: TestClient, engine: Engine, tmp_path: Path
) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.safetensors").touch()
        _lora(engine, name, local_path=str(tmp_path / f"{name}.safetensors"))
    a_model(engine, name="fix", kind="vae", local_path=str(tmp_path))
    a_model(engine, name="drawer", local_path=str(tmp_path), metadata={"config_path": str(tmp_path)})
    params = {"prompt": "a fox", "loras": [{"id": "b", "weight": 0.5}, {"id": "a"}], "vae": "fix", "preset": "low_vram"}
    assert client.post("/v1/jobs", json={"type": "generate", "model_id": "drawer", "params": params}).status_code == 201
    prepare = prepare_step(_call(engine), device="cuda", node=NODE)
    assert prepare.loras == [
        {"name": "b", "path": str(tmp_path / "b.safetensors"), "weight": 0.5},
        {"name": "a", "path": str(tmp_path / "a.safetensors"), "weight": 1.0},
    ]
    assert (prepare.vae_path, prepare.config_path) == (str(tmp_path), str(tmp_path))
    assert prepare.savings == ["vae_tiling", "vae_slicing", "model_offload"]


@pytest.mark.parametrize("lost", ["file", "row", "config"])
def test_what_is_gone_by_the_time_of_the_step_is_named(
    client: TestClient, engine: Engine, tmp_path: Path, lost: str
) -> None:
    lora = _lora(engine, "grain", local_path=str(tmp_path / ("gone" if lost == "file" else "")))
    config = {"config_path": str(tmp_path / "gone")} if lost == "config" else {}
    a_model(engine, name="drawer", local_path=str(tmp_path), metadata=config)
    body = {"type": "generate", "model_id": "drawer", "params": {"prompt": "a fox", "loras": [{"id": "grain"}]}}
    assert client.post("/v1/jobs", json=body).status_code == 201
    if lost == "row":
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM models WHERE id = :id"), {"id": lora.id})
    with pytest.raises(ModelCorrupt) as raised:
        prepare_step(_call(engine), device="cpu", node=NODE)
    named = "the folder of its configuration" if lost == "config" else "grain@1"
    assert raised.value.details["model"] == named
