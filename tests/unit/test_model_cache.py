"""What a node keeps of models, for how long, and what it does not take away from a step."""

import hashlib
import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dreamforge.errors import NodeError
from dreamforge.models.shelf import Shelf
from dreamforge.store.companions import StepFile, StepModel
from dreamforge.worker.model_cache import ModelCache

SIZE = 1000
_HOLD = """
import sys
from pathlib import Path
from tests.unit.test_model_cache import a_cache, a_model
with a_cache(Path(sys.argv[1])).hold([a_model(sys.argv[2])]):
    print("held", flush=True)
    sys.stdin.read()
"""


def a_cache(folder: Path, *, models: float | None = None) -> ModelCache:
    """A cache with room for so many models."""
    return ModelCache(shelf=Shelf(folder), size=None if models is None else int(models * SIZE))


def a_model(name: str, *, shared: bool = False) -> StepModel:
    """A model of one file, or of that and one that others have too."""
    own = StepFile("unet/own.safetensors", SIZE, _sha256(_bytes(name)))
    common = StepFile("vae.safetensors", SIZE, _sha256(_bytes("common")))
    return StepModel(
        id=uuid.uuid5(uuid.NAMESPACE_OID, name),
        name=name,
        version="1",
        kind="sdxl",
        checkpoint_hash=None,
        local_path="/elsewhere",
        size_bytes=SIZE,
        metadata={},
        files=(own, common) if shared else (own,),
    )


def _bytes(name: str) -> bytes:
    return (name * SIZE).encode()[:SIZE]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _bring(cache: ModelCache, model: StepModel) -> Path:
    """Play whoever fetches."""
    for file in cache.missing(model):
        part = cache.shelf.partial(file.sha256)
        part.write_bytes(_bytes("common" if file.path == "vae.safetensors" else model.name))
        cache.shelf.keep(part, file.sha256)
    folder = cache.assemble(model)
    assert folder is not None
    return folder


def _use(cache: ModelCache, model: StepModel) -> list[str]:
    """Use a model; the names of those that had to go."""
    with cache.hold([model]) as holding:
        if cache.find(model) is None:
            _bring(cache, model)
        return [entry.reference.partition("@")[0] for entry in holding.evicted]


@contextmanager
def _held(folder: Path, name: str) -> Generator[subprocess.Popen[str]]:
    """Another process that holds a model."""
    command = [sys.executable, "-c", _HOLD, str(folder), name]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parents[2], env={"PYTHONPATH": "."}
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_model_stays_and_is_found_again(tmp_path: Path) -> None:
    cache, model = a_cache(tmp_path), a_model("a", shared=True)
    assert cache.find(model) is None
    assert _use(cache, model) == []
    folder = cache.find(model)
    assert folder is not None
    assert (folder / "unet" / "own.safetensors").read_bytes() == _bytes("a")
    assert a_cache(tmp_path).missing(model) == ()


def test_its_entry_is_written_once_and_anew_when_the_registry_has_it_by_another_id(tmp_path: Path) -> None:
    cache, model = a_cache(tmp_path), a_model("a")
    _use(cache, model)
    (entry,) = (tmp_path / "entries").glob("*.json")
    written = entry.stat()
    _use(cache, model)
    assert (entry.stat().st_ino, entry.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    again = replace(model, id=uuid.uuid4())
    _use(cache, again)
    assert json.loads(entry.read_text())["model_id"] == str(again.id)


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = a_cache(tmp_path, models=3)
    went = [_use(cache, a_model(name)) for name in ("a", "b", "c", "a", "d", "b")]
    assert went == [[], [], [], [], ["b"], ["c"]]
    assert [cache.find(a_model(name)) is not None for name in "abcd"] == [True, True, False, True]


def test_what_others_have_too_stays_for_them(tmp_path: Path) -> None:
    cache = a_cache(tmp_path, models=3)
    for name in ("a", "b"):
        _use(cache, a_model(name, shared=True))
    assert _use(cache, a_model("c")) == ["a"], "three files of four are there already"
    found = cache.find(a_model("b", shared=True))
    assert found is not None
    assert (found / "vae.safetensors").read_bytes() == _bytes("common")
    assert not cache.shelf.has(_sha256(_bytes("a")))


def test_one_that_a_step_uses_never_goes(tmp_path: Path) -> None:
    cache = a_cache(tmp_path, models=1)
    _use(cache, a_model("a"))
    with _held(tmp_path, "a"):
        with cache.hold([a_model("b")]) as holding:
            assert holding.evicted == ()
            assert holding.excess == SIZE, "the limit is overdrawn, and that is said"
            _bring(cache, a_model("b"))
        assert cache.find(a_model("a")) is not None
    assert _use(cache, a_model("b")) == ["a"], "it goes as soon as it may"


def test_one_that_is_on_its_way_never_goes_and_counts_in_full(tmp_path: Path) -> None:
    cache = a_cache(tmp_path, models=2)
    _use(cache, a_model("b"))
    part = cache.shelf.partial(f"sha256-{_sha256(_bytes('a'))}")
    with _held(tmp_path, "a"):
        part.write_bytes(b"half")
        assert _use(cache, a_model("c")) == ["b"]
        assert part.exists()


def test_who_is_killed_holds_nothing_and_leaves_what_can_be_gone_on_with(tmp_path: Path) -> None:
    cache = a_cache(tmp_path, models=1)
    part = cache.shelf.partial(f"sha256-{_sha256(_bytes('a'))}")
    with _held(tmp_path, "a") as process:
        part.write_bytes(b"half")
        part.with_name(f"{part.name}.json").write_text("{}")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert part.exists()
    assert _use(cache, a_model("b")) == ["a"]
    assert list(part.parent.iterdir()) == [], "and what makes room takes that along"


def test_one_that_is_larger_than_all_of_it_is_kept_all_the_same(tmp_path: Path) -> None:
    cache = a_cache(tmp_path, models=0.5)
    with cache.hold([a_model("a")]) as holding:
        assert holding.excess == SIZE / 2
        _bring(cache, a_model("a"))
    assert cache.find(a_model("a")) is not None


def test_models_of_one_step_do_not_make_room_for_each_other(tmp_path: Path) -> None:
    cache = a_cache(tmp_path, models=1)
    _use(cache, a_model("lora"))
    with cache.hold([a_model("checkpoint"), a_model("lora")]) as holding:
        assert holding.evicted == ()
        _bring(cache, a_model("checkpoint"))
        assert cache.find(a_model("lora")) is not None


def test_a_name_that_stands_for_something_else_is_another_model(tmp_path: Path) -> None:
    cache, old = a_cache(tmp_path), a_model("a")
    _use(cache, old)
    new = a_model("a", shared=True)
    assert cache.find(new) is None
    assert _bring(cache, new) != cache.find(old)


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1, 0])
def test_a_copy_of_another_size_counts_as_missing(tmp_path: Path, size: int) -> None:
    cache, model = a_cache(tmp_path), a_model("a", shared=True)
    _use(cache, model)
    blob = cache.shelf.blob(model.files[0].sha256)
    blob.chmod(0o644)
    blob.write_bytes(b"x" * size)
    assert cache.find(model) is None
    assert cache.missing(model) == model.files[:1]
    _use(cache, model)
    assert cache.find(model) is not None


def test_a_copy_with_other_bytes_is_dropped_once_it_is_read(tmp_path: Path) -> None:
    cache, model = a_cache(tmp_path), a_model("a", shared=True)
    with cache.hold([model]):
        _bring(cache, model)
        assert not cache.drop_damaged(model)
        blob = cache.shelf.blob(model.files[0].sha256)
        blob.chmod(0o644)
        blob.write_bytes(b"x" * SIZE)
        assert cache.drop_damaged(model)
        assert cache.missing(model) == model.files[:1]
        _bring(cache, model)
        assert not cache.drop_damaged(model)


def test_what_a_killed_step_has_left_half_done_is_put_in_order(tmp_path: Path) -> None:
    cache, model = a_cache(tmp_path), a_model("a")
    _use(cache, model)
    (entry,) = (tmp_path / "entries").glob("*.json")
    entry.write_text(entry.read_text()[:20])
    staged = tmp_path / "partial" / "model-left"
    staged.mkdir()
    assert _use(cache, model) == []
    assert not staged.exists()
    assert cache.find(model) is not None
    assert _use(a_cache(tmp_path, models=1), a_model("b")) == ["a"], "it is known again"


def test_files_that_somebody_else_has_linked_are_left_to_them(tmp_path: Path) -> None:
    cache = a_cache(tmp_path / "cache", models=1)
    _use(cache, a_model("a"))
    blob = cache.shelf.blob(a_model("a").files[0].sha256)
    theirs = tmp_path / "theirs"
    theirs.hardlink_to(blob)
    assert _use(cache, a_model("b")) == ["a"]
    assert blob.exists()


def test_a_folder_that_cannot_be_written_is_the_node_s_trouble(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NodeError) as caught, a_cache(tmp_path / "file" / "below").hold([a_model("a")]):
        pytest.fail("nothing can be held there")
    assert caught.value.details == {"errno": "ENOTDIR"}
