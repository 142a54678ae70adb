"""`/v1/models` over a real Postgres, and how an upgrade tells the built-in model anew."""

import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator
from sqlalchemy import Engine, text

from dreamforge.embedded import builtin
from dreamforge.settings import Settings
from dreamforge.store.model_nodes import Keeper, ModelNodeStore
from dreamforge.store.models import NewModel
from tests.integration.door import assert_envelope
from tests.integration.factories import SCHEMA, a_model


def _names(client: TestClient, query: str) -> list[str]:
    response = client.get(f"/v1/models?{query}")
    assert response.status_code == 200, response.text
    assert response.json()["next_cursor"] is None
    return [f"{model['name']}@{model['version']}" for model in response.json()["items"]]


@pytest.fixture
def three(engine: Engine, model: NewModel) -> NewModel:
    """Beside `tiny@1`: one that is switched off, and one of another kind whose files are not there."""
    off = a_model(engine, name="tiny", version="2")
    gone = a_model(engine, name="flux", kind="flux", capabilities=("upscale", "generate"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE models SET enabled = false WHERE id = :id"), {"id": off.id})
        connection.execute(text("UPDATE models SET installed = false WHERE id = :id"), {"id": gone.id})
    here = Keeper(uuid.uuid4(), "gpu-1", "a")
    ModelNodeStore(engine=engine).note_use(here, [model.id])
    return model


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["flux@1", "tiny@1", "tiny@2"]),
        ("kind=sdxl", ["tiny@1", "tiny@2"]),
        ("kind=nothing", []),
        ("installed=true", ["tiny@1", "tiny@2"]),
        ("installed=false", ["flux@1"]),
        ("enabled=false", ["tiny@2"]),
        ("enabled=1&installed=1", ["tiny@1"]),
        ("capability=upscale", ["flux@1"]),
        ("capability=generate&kind=sdxl&enabled=true&installed=true", ["tiny@1"]),
        ("capability=gener", []),
    ],
)
def test_models_are_listed_by_filters(client: TestClient, three: NewModel, query: str, expected: list[str]) -> None:
    assert three
    assert _names(client, query) == expected


@pytest.mark.parametrize("query", ["installed=maybe", "enabled=", "kind=", "kind=%00", f"capability={'x' * 201}"])
def test_a_filter_that_makes_no_sense_is_refused(client: TestClient, query: str) -> None:
    error = assert_envelope(client.get(f"/v1/models?{query}"), 422, "invalid_request")
    (described,) = error["details"]["errors"]
    assert described["path"] == f"query.{query.partition('=')[0]}"


def test_one_model_is_the_same_as_in_the_list(client: TestClient, three: NewModel) -> None:
    one = client.get(f"/v1/models/{three.id}").json()
    assert one in client.get("/v1/models").json()["items"]
    assert (one["name"], one["default"], one["nodes"][0]["node"]) == ("tiny", True, "gpu-1")
    Draft202012Validator.check_schema(one["parameters_schema"])
    assert one["parameters_schema"] == SCHEMA


def test_a_model_has_a_name_too(client: TestClient, three: NewModel) -> None:
    assert client.get("/v1/models/tiny@1").json()["id"] == str(three.id)
    assert client.get("/v1/models/tiny").json()["version"] == "2", "the newest version"
    assert client.get(f"/v1/models/{str(three.id).upper()}").json()["id"] == str(three.id)


@pytest.mark.parametrize("unknown", [str(uuid.UUID(int=7)), "nobody", "tiny@9", "tiny@", "%00", "x" * 201, "%ff", "@"])
def test_an_unknown_model_is_not_found(client: TestClient, unknown: str) -> None:
    assert_envelope(client.get(f"/v1/models/{unknown}"), 404, "not_found")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny"])
def test_who_has_it_already_is_told_so(client: TestClient, engine: Engine, path: str) -> None:
    first = client.get(path)
    tag = first.headers["ETag"]
    assert tag.startswith('"'), "a strong one"
    assert client.get(path).headers["ETag"] == tag
    for known in (tag, f"W/{tag}", f'"other", {tag}', f'W/"a,b" , "", W/{tag}', "*"):
        answer = client.get(path, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content) == (304, b""), known
        assert answer.headers["ETag"] == tag
        assert answer.headers["X-Request-Id"]
    two = client.get(path, headers=[("If-None-Match", '"other"'), ("If-None-Match", tag)])
    assert two.status_code == 304
    for unknown in ('"other"', "", tag.strip('"'), f"{tag[:-1]}", f"x{tag}", '"*"', f'"other" {tag}'):
        assert client.get(path, headers={"If-None-Match": unknown}).status_code == 200, unknown
    with engine.begin() as connection:
        connection.execute(text("UPDATE models SET enabled = false"))
    changed = client.get(path, headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["ETag"] != tag


def _described(engine: Engine) -> tuple[Any, ...]:
    with engine.begin() as connection:
        query = (
            "SELECT parameters_schema, metadata_json, is_default, enabled, id, updated_at, local_path, checkpoint_hash,"
            " size_bytes FROM models WHERE name = 'sdxl-tiny'"
        )
        return tuple(connection.execute(text(query)).one())


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """Where `up` expects the built-in model, which is there."""
    folder = tmp_path / "models" / "sdxl" / "sdxl-tiny@1"
    shutil.copytree(tiny_model, folder)
    (folder / "descriptor.json").write_text("{}")
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of `up`."""
    return Settings(data_dir=tmp_path, models_dir=tmp_path / "models")


@pytest.mark.usefixtures("folder")
def test_an_upgrade_tells_the_built_in_model_anew(engine: Engine, database_url: str, settings: Settings) -> None:
    assert builtin.install_if_empty(settings, database_url) == builtin.NOTICE
    new = _described(engine)
    assert builtin.install_if_empty(settings, database_url) == builtin.NOTICE
    assert _described(engine) == new, "nothing is written when nothing has changed"
    with engine.begin() as connection:
        connection.execute(
            text("""UPDATE models SET parameters_schema = '{"old": 1}', enabled = false, local_path = '/before'""")
        )
    builtin.install_if_empty(settings, database_url)
    told = _described(engine)
    assert (told[3], *told[:3], told[4], *told[6:]) == (False, *new[:3], new[4], *new[6:]), "a person's decision stays"
    assert told[5] != new[5]


@pytest.mark.usefixtures("folder")
def test_the_built_in_model_stays_switched_off_where_there_is_no_default(
    engine: Engine, database_url: str, settings: Settings
) -> None:
    builtin.install_if_empty(settings, database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE models SET enabled = false, is_default = false, local_path = '/before'"))
    assert builtin.install_if_empty(settings, database_url) is None
    assert _described(engine)[3] is False


def test_another_build_of_the_built_in_model_is_told_with_its_files(
    engine: Engine, database_url: str, settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(anew: Path) -> None:
        (anew / "model_index.json").write_text("another")
        (anew / "descriptor.json").write_text("{}")

    monkeypatch.setattr(builtin, "_build", build)
    builtin.install_if_empty(settings, database_url)
    before = _described(engine)
    (folder / "model_index.json").write_text("damaged")
    builtin.install_if_empty(settings, database_url)
    assert _described(engine) == before, "damage is not what the model is"
    (folder / "descriptor.json").unlink()
    builtin.install_if_empty(settings, database_url)
    told, expected = _described(engine), builtin.describe(folder)
    assert told[7:] == (expected.checkpoint_hash, sum(file.size for file in expected.files))
    assert told[7] != before[7]
    with engine.connect() as connection:
        files = connection.execute(text("SELECT path, size, sha256 FROM model_files")).all()
    assert {tuple(file) for file in files} == {(file.path, file.size, file.sha256) for file in expected.files}


@pytest.mark.usefixtures("folder")
def test_the_notice_is_for_those_whose_jobs_find_the_built_in_model(
    engine: Engine, database_url: str, settings: Settings
) -> None:
    assert builtin.install_if_empty(settings, database_url) == builtin.NOTICE
    own = a_model(engine, name="own")
    with engine.begin() as connection:
        connection.execute(text("UPDATE models SET is_default = false"))
        connection.execute(text("UPDATE models SET is_default = true WHERE id = :id"), {"id": own.id})
    assert builtin.install_if_empty(settings, database_url) is None


@pytest.mark.usefixtures("folder")
def test_a_model_of_the_same_name_from_elsewhere_is_left_alone(
    engine: Engine, database_url: str, settings: Settings
) -> None:
    a_model(engine, name="sdxl-tiny", source_uri="file:/elsewhere", parameters_schema={"own": 1}, local_path="/own")
    before = _described(engine)
    assert builtin.install_if_empty(settings, database_url) is None
    assert _described(engine) == before
    assert (before[0], before[6]) == ({"own": 1}, "/own")
