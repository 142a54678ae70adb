"""A model comes to the node that draws with it: from where it was installed, from the node's cache, or fetched."""

import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from dreamforge.installation.publishing import Publisher
from dreamforge.jobs.outcome import Outcome
from dreamforge.models.descriptor import ModelFile
from dreamforge.models.object_keys import model_file_key
from dreamforge.store.companions import StepFile
from dreamforge.store.jobs import NewJob
from dreamforge.store.models import NewModel
from tests.integration.bench import Bench, files_of
from tests.integration.factories import a_model
from tests.integration.rogue import rogue

pytestmark = pytest.mark.timeout(120)

ELSEWHERE = "/installed/on/another/machine"
GREY = rogue("draw")
"""A runner that loads nothing: its step is only about what comes before it."""


def publish(bench: Bench, path: Path, files: Any = None) -> None:
    """Put a model's files into the object store, as the machine does that has them."""
    above = path if path.is_dir() else path.parent
    found = [ModelFile(**vars(file)) for file in files or files_of(path)]
    Publisher(blobs=bench.store.blobs()).publish([(above / file.path, file) for file in found])


def _published(bench: Bench, **changes: Any) -> NewModel:
    """A model that no node can see where it was installed."""
    publish(bench, bench.model_path)
    files = files_of(bench.model_path)
    return a_model(bench.engine, local_path=f"{ELSEWHERE}/{uuid.uuid4()}", files=files, **changes)


def _run(bench: Bench, **how: Any) -> tuple[NewJob, Outcome]:
    new = bench.submit(seed=3)
    return new, bench.supervise(bench.claim(), **how)


def _fetched(bench: Bench, job: NewJob) -> list[dict[str, Any]]:
    return [event.payload for event in bench.jobs.events(job.id) if event.code == "model.fetching"]


def _warnings(bench: Bench, job: NewJob) -> list[str]:
    return [
        event.payload["message"]
        for event in bench.jobs.events(job.id)
        if (event.code, event.level) == ("log", "warning")
    ]


def _holders(bench: Bench, model: NewModel) -> set[str]:
    with bench.engine.connect() as connection:
        query = text("SELECT node FROM model_nodes WHERE model_id = :id")
        return set(connection.scalars(query, {"id": model.id}))


def _blob(bench: Bench, sha256: str, *, node: str = "here") -> Path:
    return bench.shelf(node).blob(sha256)


def _largest(bench: Bench) -> StepFile:
    return max((StepFile(**vars(file)) for file in bench.model.files), key=lambda file: file.size)


def test_one_that_lies_where_it_was_installed_is_used_there(bench: Bench) -> None:
    new, outcome = _run(bench, runner=GREY)
    assert outcome.failure is None
    assert _fetched(bench, new) == []
    assert not (bench.shelf().root / "blobs").exists(), "nothing is copied"
    assert _holders(bench, bench.model) == {"here"}, "but known"


def test_one_that_does_not_is_fetched_once_by_each_node_and_draws_the_same(bench: Bench) -> None:
    there, outcome = _run(bench)
    assert outcome.failure is None
    bench.model = _published(bench)
    first, outcome = _run(bench)
    assert outcome.failure is None
    assert bench.pixels(there.id) == bench.pixels(first.id)
    again, outcome = _run(bench, runner=GREY)
    assert outcome.failure is None
    other, outcome = _run(bench, runner=GREY, node="there")
    assert outcome.failure is None
    total = sum({file.sha256: file.size for file in bench.model.files}.values())
    for job in (first, other):
        events = _fetched(bench, job)
        assert events[0]["bytes_done"] < total
        assert (events[-1]["bytes_done"], events[-1]["bytes_total"]) == (total, total)
        assert {(event["model"], event["origin"]) for event in events} == {(f"{bench.model.name}@1", "object_store")}
        assert [event["bytes_done"] for event in events] == sorted(event["bytes_done"] for event in events)
    assert _fetched(bench, again) == [], "what is here is used again"
    assert _holders(bench, bench.model) == {"here", "there"}


def test_a_single_file_is_the_model_itself_wherever_it_lies(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    shutil.copyfile(next(bench.model_path.rglob("*.safetensors")), file)
    publish(bench, file)
    files = files_of(file)
    bench.model = a_model(bench.engine, local_path=f"{ELSEWHERE}/{file.name}", files=files)
    # What draws it has to make nothing of it: where it is said to be is asked for.
    _, outcome = _run(bench, runner=GREY)
    assert outcome.failure is None
    (found,) = bench.shelf().root.glob("sdxl/*/one.safetensors")
    assert found.samefile(_blob(bench, files[0].sha256)), "its bytes are there once"


def test_a_folder_that_has_come_to_be_another_is_not_drawn_with(bench: Bench, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(bench.model_path, changed)
    publish(bench, bench.model_path)
    bench.model = a_model(bench.engine, local_path=str(changed), files=files_of(bench.model_path))
    (changed / "unet" / "config.json").write_text("{}")
    new, outcome = _run(bench, runner=GREY)
    assert outcome.failure is None
    assert _fetched(bench, new), "what was registered is fetched instead"


def test_one_that_was_never_published_says_what_to_do(bench: Bench) -> None:
    files = (*files_of(bench.model_path)[:1], *files_of(Path(__file__)))
    bench.model = a_model(bench.engine, name="lost", local_path=f"{ELSEWHERE}/lost", files=files)
    new, outcome = _run(bench)
    assert outcome.failure is not None
    assert outcome.failure.code == "model_not_installed"
    assert outcome.failure.suggestions == ["On the machine that has them: dreamforge model publish lost@1"]
    assert _fetched(bench, new) == []
    assert _holders(bench, bench.model) == set()
    assert ELSEWHERE not in str(outcome.failure.as_json())


def test_an_object_that_is_not_what_was_published_is_not_kept(bench: Bench) -> None:
    bench.model = _published(bench)
    file = _largest(bench)
    key = model_file_key(file.sha256)
    bench.store.blobs().put(key, bytes(file.size), content_type="application/octet-stream")
    try:
        _, outcome = _run(bench)
    finally:
        bench.store.blobs().remove([key])
    assert outcome.failure is not None
    assert outcome.failure.code == "model_corrupt"
    assert "dreamforge model publish" in outcome.failure.suggestions[0]
    assert not _blob(bench, file.sha256).exists()
    assert _holders(bench, bench.model) == set()


def test_a_damaged_copy_is_noticed_by_its_size_and_fetched_again(bench: Bench) -> None:
    bench.model = _published(bench)
    _run(bench, runner=GREY)
    file = _largest(bench)
    damaged = _blob(bench, file.sha256)
    damaged.chmod(0o644)
    with damaged.open("r+b") as stream:
        stream.truncate(file.size - 1)
    new, outcome = _run(bench)
    assert outcome.failure is None
    assert _fetched(bench, new)[-1]["bytes_total"] == file.size, "only that file"


def test_a_copy_whose_bytes_have_changed_is_found_out_when_it_does_not_load(bench: Bench) -> None:
    bench.model = _published(bench)
    _run(bench, runner=GREY)
    file = _largest(bench)
    damaged = _blob(bench, file.sha256)
    damaged.chmod(0o644)
    with damaged.open("r+b") as stream:
        stream.write(b"\xff" * 64)
    new, outcome = _run(bench)
    assert outcome.failure is None
    assert _warnings(bench, new) == [f"The copy of {bench.model.name}@1 on this node was damaged: it is fetched again."]
    assert _fetched(bench, new)[-1]["bytes_total"] == file.size


def test_a_model_that_is_corrupt_itself_is_not_fetched_again(bench: Bench, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(bench.model_path, torn)
    weights = max(torn.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    weights.write_bytes(b"\xff" * 64 + weights.read_bytes()[64:])
    publish(bench, torn)
    bench.model = a_model(bench.engine, local_path=f"{ELSEWHERE}/torn", files=files_of(torn))
    new, outcome = _run(bench)
    assert outcome.failure is not None
    assert outcome.failure.code == "model_corrupt"
    assert _warnings(bench, new) == []


def test_the_least_recently_used_makes_room_and_is_listed_no_more(
    bench: Bench, client: TestClient, tmp_path: Path
) -> None:
    def one(number: int) -> NewModel:
        folder = tmp_path / f"m{number}"
        shutil.copytree(bench.model_path, folder)
        # Weights that no other model has.
        (folder / "ballast.txt").write_bytes(bytes([number]) * 3_000_000)
        publish(bench, folder)
        return a_model(bench.engine, name=f"m{number}", local_path=f"{ELSEWHERE}/m{number}", files=files_of(folder))

    models = [one(number) for number in range(3)]
    size = sum({file.sha256: file.size for model in models[:2] for file in model.files}.values())
    for index in (0, 1, 0, 2):
        bench.model = models[index]
        _, outcome = _run(bench, cache_size=size, runner=GREY)
        assert outcome.failure is None
    assert [bool(_holders(bench, model)) for model in models] == [True, False, True]
    assert [len(list(bench.shelf().root.glob(f"sdxl/m{number}@*"))) for number in range(3)] == [1, 0, 1]
    assert client.get("/v1/models/m1").json()["nodes"] == []
    (node,) = client.get("/v1/models/m2").json()["nodes"]
    assert (node["node"], node["node_id"], node["online"]) == ("here", "ray-here", False)
    on_disk = sum(path.stat().st_size for path in (bench.shelf().root / "blobs").rglob("*") if path.is_file())
    assert on_disk <= size
    bench.model = models[1]
    new, outcome = _run(bench, cache_size=1024 * 1024, runner=GREY)
    assert outcome.failure is None, "one that is larger than all of the cache is fetched all the same"
    assert _warnings(bench, new) == [
        "The models in use take more than DREAMFORGE_MODEL_CACHE_SIZE allows on this node."
    ]
    assert [bool(_holders(bench, model)) for model in models] == [False, True, False]


def test_loras_and_vae_come_the_same_way(bench: Bench, tmp_path: Path) -> None:
    bench.model = _published(bench)
    for name, kind in (("grain", "lora"), ("fix", "vae")):
        file = tmp_path / f"{name}.safetensors"
        file.write_bytes(name.encode() * 1000)
        publish(bench, file)
        a_model(bench.engine, name=name, kind=kind, local_path=f"{ELSEWHERE}/{file.name}", files=files_of(file))
    new = bench.submit(loras=[{"id": "grain@1", "weight": 1.0}], vae="fix@1")
    outcome = bench.supervise(bench.claim(), runner=GREY)
    assert outcome.failure is None
    assert {event["model"] for event in _fetched(bench, new)} == {f"{bench.model.name}@1", "grain@1", "fix@1"}


def test_a_node_is_online_while_it_gives_signs_of_life(client: TestClient, bench: Bench, engine: Engine) -> None:
    _run(bench, runner=GREY)

    def is_online() -> bool:
        (node,) = client.get(f"/v1/models/{bench.model.id}").json()["nodes"]
        (listed,) = [
            model["nodes"] for model in client.get("/v1/models").json()["items"] if model["id"] == str(bench.model.id)
        ]
        assert listed == [node]
        return node["online"]

    def beat(id: str, node: str, *, age: int = 0) -> None:
        statement = "INSERT INTO heartbeats (id, kind, node, seen_at) VALUES (:id, 'node', :node, now() - :age)"
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM heartbeats"))
            connection.execute(text(statement.replace(":age", f"interval '{age} seconds'")), {"id": id, "node": node})

    assert not is_online()
    beat("node:ray-here", "10.0.0.7")
    assert is_online()
    beat("node:ray-here", "10.0.0.7", age=60)
    assert not is_online()
    beat("node:ray-here-again", "here")
    assert is_online(), "Ray calls it by another name since it was started anew"
    beat("node:other", "10.0.0.8")
    assert not is_online()


def test_nothing_is_fetched_for_a_step_whose_lora_is_gone(bench: Bench) -> None:
    bench.model = _published(bench)
    a_model(bench.engine, name="gone", kind="lora")
    new = bench.submit(loras=[{"id": "gone@1", "weight": 1.0}])
    with bench.engine.begin() as connection:
        connection.execute(text("DELETE FROM models WHERE name = 'gone'"))
    outcome = bench.supervise(bench.claim(), runner=GREY)
    assert outcome.failure is not None
    assert (outcome.failure.code, outcome.failure.details["model"]) == ("model_corrupt", "gone@1")
    assert _fetched(bench, new) == []


def test_a_cache_that_cannot_be_used_is_the_node_s_trouble(bench: Bench) -> None:
    bench.model = _published(bench)
    bench.shelf().root.mkdir()
    (bench.shelf().root / "blobs").write_text("no folder")
    _, outcome = _run(bench, runner=GREY)
    assert outcome.failure is not None
    assert (outcome.failure.code, outcome.failure.details) == ("node_error", {"errno": "ENOTDIR"})
