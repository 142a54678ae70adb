"""From a reference to a registered model: each file once, verified, published, and nothing by half."""

import errno
import json
import os
import pickle
import shutil
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from dreamforge.blobs import Blobs
from dreamforge.embedded.ports import free_port
from dreamforge.errors import (
    Cancelled,
    Conflict,
    DiskFull,
    DownloadCorrupt,
    ModelCorrupt,
    ModelIncompatible,
    SourceNotFound,
)
from dreamforge.installation import disk
from dreamforge.installation.fetcher import ShelfFetcher
from dreamforge.installation.garbage import Collector, Waste
from dreamforge.installation.install import Installer, InstallRequest
from dreamforge.installation.observer import Phase
from dreamforge.models.component_configs import read_configs
from dreamforge.models.object_keys import model_file_key
from dreamforge.models.remote import RemoteFile
from dreamforge.models.safetensors_header import read_header
from dreamforge.models.weights import Kind
from dreamforge.store.models import ModelRegistry, NewModel, Registered
from tests import weights
from tests.faults import small_disk
from tests.hubs.hosting import Fault
from tests.integration.installing import Place, Watcher


@pytest.fixture
def registry(engine: Engine) -> ModelRegistry:
    return ModelRegistry(engine=engine)


def test_a_repository_becomes_a_model(place: Place, registry: ModelRegistry, tiny_model: Path) -> None:
    repo = place.hub.add("org/tiny", tiny_model, build="StableDiffusionXLPipeline")
    watcher = Watcher()
    installed = place.install("hf:org/tiny", watcher=watcher)
    assert watcher.phases == list(Phase)
    assert (installed.registered.is_new, installed.registered.is_default, installed.is_published) == (True, True, True)
    assert installed.descriptor.source_uri == f"hf:org/tiny@{repo.head.id}"
    assert installed.folder == place.root / "sdxl" / f"tiny@{repo.head.id[:12]}"
    files = {path.relative_to(installed.folder).as_posix() for path in installed.folder.rglob("*") if path.is_file()}
    assert files == {"descriptor.json", *(file.path for file in installed.descriptor.files)}
    told = json.loads((installed.folder / "descriptor.json").read_text())
    assert (told["reference"], told["revision"]) == ("hf:org/tiny", installed.descriptor.source_uri)
    assert told["checkpoint_hash"] == installed.descriptor.checkpoint_hash
    known = registry.content_of(name="tiny", version=repo.head.id[:12])
    assert known is not None
    assert (known.local_path, known.installed) == (str(installed.folder), True)
    assert {file.path: file.sha256 for file in known.files} == {
        file.path: file.sha256 for file in installed.descriptor.files
    }
    blobs = Blobs(place.blobs)
    assert all(blobs.size_of(model_file_key(file.sha256)) == file.size for file in known.files)
    assert installed.downloaded_bytes <= sum(file.size for file in known.files)
    assert not place.files("partial")


def test_a_file_is_stored_once_whatever_it_is_called(place: Place, tiny_model: Path) -> None:
    place.hub.add("org/tiny", tiny_model, build="StableDiffusionXLPipeline")
    first = place.install("hf:org/tiny", name="one", version="1")
    watcher = Watcher()
    second = place.install("hf:org/tiny", name="two", version="1", watcher=watcher)
    assert (first.downloaded_bytes > 0, second.downloaded_bytes) == (True, 0)
    for file in second.descriptor.files:
        assert (first.folder / file.path).samefile(second.folder / file.path)
        assert (first.folder / file.path).samefile(place.root / "blobs" / "sha256" / file.sha256[:2] / file.sha256)
    # The two tokenizers of the tiny model are the same files.
    assert (first.folder / "tokenizer/tokenizer.json").samefile(first.folder / "tokenizer_2/tokenizer.json")
    assert sum(stored.bytes_sent for stored in place.hub.repos["org/tiny"].head.stored.values()) == sum(
        stored.size for stored in place.hub.repos["org/tiny"].head.stored.values()
    )


def test_what_is_there_is_not_installed_again(place: Place) -> None:
    stored = place.add_checkpoint("org/xl")
    first = place.install("hf:org/xl:XL.safetensors")
    before = {path: path.stat().st_ctime_ns for path in place.files()}
    watcher = Watcher()
    again = place.install("hf:org/xl:XL.safetensors", watcher=watcher)
    assert (again.was_there, again.registered.id, again.downloaded_bytes) == (True, first.registered.id, 0)
    assert again.descriptor.checkpoint_hash == stored.sha256
    assert watcher.phases == [Phase.RESOLVE]
    assert {path: path.stat().st_ctime_ns for path in place.files()} == before
    assert stored.bytes_sent == stored.size


def test_a_model_that_lost_files_is_installed_anew_and_that_is_said(place: Place) -> None:
    place.add_checkpoint("org/xl")
    first = place.install("hf:org/xl:XL.safetensors")
    (first.folder / "XL.safetensors").unlink()
    again = place.install("hf:org/xl:XL.safetensors")
    assert (again.was_there, again.registered.id) == (False, first.registered.id)
    assert "XL.safetensors is gone: it is installed anew" in again.warnings[0]
    assert (first.folder / "XL.safetensors").exists()


def test_a_name_that_is_taken_is_refused_before_a_byte_is_fetched(place: Place) -> None:
    place.add_checkpoint("org/xl")
    other = place.add_checkpoint("org/other")
    first = place.install("hf:org/xl", name="mine", version="1")
    with pytest.raises(Conflict, match=r"mine@1 already, with other content, from hf:org/xl@.*--name.*--version"):
        place.install("hf:org/other", name="mine", version="1")
    assert other.bytes_sent == 0
    assert (first.folder / "XL.safetensors").exists()


def test_a_file_of_this_machine_that_changed_takes_no_models_place(place: Place, tmp_path: Path) -> None:
    # Its source tells no hash: what it is shows when it was read.
    path = weights.write(tmp_path / "mine.safetensors", weights.vae(), fill=b"one")
    first = place.install(f"file:{path}")
    assert place.install(f"file:{path}").registered == replace(first.registered, is_new=False)
    weights.write(path, weights.vae(), fill=b"two")
    before = (first.folder / "mine.safetensors").read_bytes()
    with pytest.raises(Conflict):
        place.install(f"file:{path}")
    assert (first.folder / "mine.safetensors").read_bytes() == before
    assert place.install(f"file:{path}", version="2").registered.is_new


def test_a_wrong_hash_leaves_nothing(place: Place, registry: ModelRegistry) -> None:
    stored = place.add_checkpoint("org/xl")
    stored.fault = Fault(flips=5000)
    with pytest.raises(DownloadCorrupt):
        place.install("hf:org/xl")
    assert not place.files()
    assert registry.installed() == []
    stored.fault = Fault()
    assert place.install("hf:org/xl").registered.is_new


def test_a_file_that_fails_ends_the_others(place: Place, tiny_model: Path) -> None:
    repo = place.hub.add("org/tiny", tiny_model, build="StableDiffusionXLPipeline")
    slow = repo.head.stored["unet/diffusion_pytorch_model.safetensors"]
    # It would take hours.
    slow.fault = Fault(drip=0.05, drip_bytes=16)
    repo.head.stored["vae/diffusion_pytorch_model.safetensors"].fault = Fault(status=404)
    with pytest.raises(SourceNotFound):
        place.install("hf:org/tiny")


def test_nothing_is_downloaded_that_has_no_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = place.add_checkpoint("org/xl")
    usage = disk.shutil.disk_usage(place.folder)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=disk.SPARE_BYTES + 1000))
    with pytest.raises(DiskFull, match=r"3 MB are needed in .*models.*, where 268 MB .*dreamforge model gc") as raised:
        place.install("hf:org/xl")
    assert raised.value.details["needed_bytes"] == stored.size
    assert stored.bytes_sent == 0


def test_weights_that_no_index_names_are_looked_at_too(place: Place, tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "sharded")
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    first = whole.rename(whole.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    second = first.with_name("diffusion_pytorch_model-00002-of-00002.safetensors")
    places = dict.fromkeys(read_header(first).tensors, first.name)
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    second.write_bytes(pickle.dumps({"a": 1}))
    place.hub.add("org/tiny", folder, build="StableDiffusionXLPipeline")
    with pytest.raises(ModelCorrupt, match="is a pickle"):
        place.install("hf:org/tiny")
    shutil.copyfile(first, second)
    place.hub.add("org/tiny", folder, build="StableDiffusionXLPipeline")
    assert place.install("hf:org/tiny").registered.is_new


def test_without_links_a_model_takes_its_room_twice(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on exFAT, and on some network shares."""

    def no_link(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    stored = place.add_checkpoint("org/xl")
    usage = disk.shutil.disk_usage(place.folder)
    with monkeypatch.context() as cramped:
        free = disk.SPARE_BYTES + stored.size + 1000
        cramped.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=free))
        with pytest.raises(DiskFull) as raised:
            place.install("hf:org/xl")
    assert raised.value.details["needed_bytes"] == 2 * stored.size
    assert stored.bytes_sent == 0
    installed = place.install("hf:org/xl")
    assert (installed.folder / "XL.safetensors").read_bytes() == place.hub.repos["org/xl"].head.body("XL.safetensors")
    with place.workshop() as one, place.workshop() as other:
        assert one.shelf.place() == other.shelf.place()
    assert not place.files("partial")


def test_a_copy_that_fills_the_disk_is_given_back(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(bytes(4 * 1024**2))
    with small_disk(tmp_path / "small", mib=3) as small, place.workshop(root=small / "models") as workshop:
        fetcher = ShelfFetcher(
            shelf=workshop.shelf, leases=workshop.leases, downloader=workshop.downloader, owner="test"
        )
        file = RemoteFile(path=path.name, url=path.as_uri(), size=4 * 1024**2)
        with pytest.raises(DiskFull):
            fetcher.copy(file, path, small / "models" / "target")
        assert not list(workshop.shelf.unfinished())


def test_a_cancel_ends_it_within_a_second_and_it_goes_on_from_there(place: Place) -> None:
    stored = place.add_checkpoint("org/xl", size=2_000_000)
    stored.fault = Fault(drip=0.02, drip_bytes=16_384)
    watcher, cancelled = Watcher(), threading.Event()

    def check() -> None:
        if cancelled.is_set():
            raise Cancelled

    def on_bytes(phase: Phase, path: str, done: int, total: int | None) -> None:
        del phase, path
        if total and done > total // 4:
            cancelled.set()

    watcher.on_bytes = on_bytes
    with place.workshop() as workshop, pytest.raises(Cancelled):
        Installer.of(workshop).install(InstallRequest("hf:org/xl"), observer=watcher, check=check)
    assert [path.suffix for path in place.files("partial")] == [".part", ".json"]
    stored.fault = Fault()
    assert place.install("hf:org/xl").registered.is_new
    # A quarter was there; what was on its way is lost.
    assert stored.bytes_sent < 1.2 * stored.size


def test_a_store_that_is_away_leaves_the_model_installed_and_the_next_try_publishes_it(place: Place) -> None:
    stored = place.add_checkpoint("org/xl")
    away = replace(place.blobs, endpoint=f"http://127.0.0.1:{free_port()}")
    with place.workshop(blobs=away) as workshop:
        installed = Installer.of(workshop).install(InstallRequest("hf:org/xl", version="1"), observer=Watcher())
    assert (installed.registered.is_new, installed.is_published) == (True, False)
    assert "Once it answers: dreamforge model publish xl@1" in installed.warnings[0]
    again = place.install("hf:org/xl", version="1")
    assert (again.was_there, again.is_published, again.warnings) == (True, True, ())
    assert Blobs(place.blobs).size_of(model_file_key(stored.sha256)) == stored.size


def test_what_is_local_only_stays_here_until_it_is_published(place: Place, registry: ModelRegistry) -> None:
    stored = place.add_checkpoint("org/xl")
    installed = place.install("hf:org/xl", version="1", is_local_only=True)
    assert (installed.is_published, installed.warnings) == (False, ())
    key = model_file_key(stored.sha256)
    assert Blobs(place.blobs).size_of(key) is None
    assert "xl@1 is in the object store: " in place.done("publish", "xl")
    assert Blobs(place.blobs).size_of(key) == stored.size
    known = registry.content_of(name="xl", version="1")
    assert known is not None
    assert known.published_at is not None
    assert "it was there already" in place.done("publish", "xl@1")
    assert place.install("hf:org/xl", version="1", is_local_only=True).is_published


def test_the_kind_that_is_asked_for_has_to_be_right(place: Place, registry: ModelRegistry) -> None:
    place.add_checkpoint("org/xl")
    with pytest.raises(ModelIncompatible):
        place.install("hf:org/xl", kind=Kind.LORA)
    assert registry.installed() == []
    assert not (place.root / "sdxl").exists()


def test_a_lora_keeps_both_hashes(place: Place, tmp_path: Path, registry: ModelRegistry) -> None:
    path = weights.write(tmp_path / "style.safetensors", weights.kohya_lora())
    place.hub.add("org/style", {"style.safetensors": path.read_bytes()})
    installed = place.install("hf:org/style")
    assert installed.descriptor.kind == "lora"
    assert not installed.registered.is_default
    (known,) = registry.installed()
    assert len(known.metadata["tensor_hash"]) == 64
    assert known.local_path == str(installed.folder / "style.safetensors")


def test_a_model_that_was_imported_may_be_downloaded_under_its_name(
    place: Place, engine: Engine, registry: ModelRegistry
) -> None:
    place.add_checkpoint("org/xl")
    imported = place.folder / "made" / "org" / "xl" / "XL.safetensors"
    place.done("import", imported, "--name", "xl", "--version", "1")
    installed = place.install("hf:org/xl", version="1")
    assert not installed.registered.is_new
    (known,) = registry.installed()
    assert known.local_path == str(installed.folder / "XL.safetensors")
    assert imported.exists()
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM downloads")) == 0, "leases that nobody has"


def test_a_given_configuration_goes_with_the_model(place: Place, tiny_model: Path, registry: ModelRegistry) -> None:
    path = weights.write(
        place.folder / "small.safetensors",
        weights.sdxl_checkpoint(width=80, blocks=_blocks(tiny_model)),
    )
    place.hub.add("org/small", {"small.safetensors": path.read_bytes()})
    with pytest.raises(ModelIncompatible):
        place.install("hf:org/small")
    installed = place.install("hf:org/small", config=tiny_model)
    (known,) = registry.installed()
    assert (known.metadata["config_path"], known.checkpoint_hash) == ("config", known.files[-1].sha256)
    configs = {file.path for file in known.files if file.path.startswith("config/")}
    assert {"config/model_index.json", "config/unet/config.json", "config/tokenizer/tokenizer.json"} <= configs
    assert not [name for name in configs if name.endswith(".safetensors")]
    assert all((installed.folder / file.path).stat().st_size == file.size for file in known.files)
    blobs = Blobs(place.blobs)
    assert all(blobs.size_of(model_file_key(file.sha256)) == file.size for file in known.files)
    assert "each as it was" in place.done("verify", "small")


def _blocks(tiny_model: Path) -> int:
    """How many transformer blocks the tiny model's UNet is said to have."""
    expected = read_configs(tiny_model).expected().transformer_blocks
    return 70 if expected is None else expected


def test_what_was_cleaned_up_before_it_was_registered_is_published_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = place.add_checkpoint("org/xl")
    key, blobs = model_file_key(stored.sha256), Blobs(place.blobs)
    register = ModelRegistry.register

    def cleaned_up(registry: ModelRegistry, new: NewModel, *, as_default: bool | None = None) -> Registered:
        # Another node's `gc`, which had found the object to be of no model.
        assert registry.unless_needed(stored.sha256, lambda: blobs.remove([key]))
        return register(registry, new, as_default=as_default)

    monkeypatch.setattr(ModelRegistry, "register", cleaned_up)
    place.install("hf:org/xl")
    assert blobs.size_of(key) == stored.size


def test_objects_of_no_model_go_after_a_day(place: Place, registry: ModelRegistry) -> None:
    kept, gone = place.add_checkpoint("org/kept"), place.add_checkpoint("org/gone")
    place.install("hf:org/kept")
    place.install("hf:org/gone", version="1")
    registry.remove(registry.find("gone").id)
    blobs = Blobs(place.blobs)
    with place.workshop() as workshop:
        assert Collector(workshop=workshop, now=datetime.now(UTC)).stored(blobs) == []
        later = Collector(workshop=workshop, now=datetime.now(UTC) + timedelta(hours=25))
        (found,) = later.stored(blobs)
        assert (found.waste, found.name, found.size_bytes) == (Waste.OBJECT, model_file_key(gone.sha256), gone.size)
        place.install("hf:org/gone", version="1")
        assert not later.remove(found), "somebody has come to need it"
        registry.remove(registry.find("gone").id)
        assert later.remove(found)
    assert blobs.size_of(model_file_key(gone.sha256)) is None
    assert blobs.size_of(model_file_key(kept.sha256)) == kept.size


def test_a_full_disk_is_told_as_one() -> None:
    with pytest.raises(DiskFull, match="is full"), disk.disk_errors(Path("/")):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), disk.disk_errors(Path("/")):
        raise PermissionError
