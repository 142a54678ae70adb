"""From a reference to a model's files, over HTTP, for each kind of source, and one that a package adds."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamforge.errors import (
    DownloadCorrupt,
    InvalidRequest,
    ModelCorrupt,
    SourceForbidden,
    SourceNotFound,
)
from dreamforge.models.descriptor import ModelDescriptor
from dreamforge.models.inspection import inspect
from dreamforge.models.remote import RemoteModel
from dreamforge.models.sources.registry import Sources, open_sources
from tests import lora_files, single_file
from tests.hubs.civitai import FakeCivitai, HubFile, HubVersion
from tests.hubs.fetching import PlainFetcher
from tests.hubs.file_server import FileServer
from tests.hubs.hosting import Fault
from tests.hubs.huggingface import FakeHuggingFace

TOKEN = "token_of_a_test"


@pytest.fixture(scope="module")
def tiny_file(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model as one file."""
    return single_file.write(tiny_model, tmp_path_factory.mktemp("file") / "tiny_xl.safetensors")


@pytest.fixture
def hugging_face() -> Iterator[FakeHuggingFace]:
    with FakeHuggingFace() as hub:
        hub.tokens = {TOKEN}
        yield hub


@pytest.fixture
def civitai() -> Iterator[FakeCivitai]:
    with FakeCivitai() as hub:
        hub.tokens = {TOKEN}
        yield hub


@pytest.fixture
def sources(hugging_face: FakeHuggingFace, civitai: FakeCivitai) -> Sources:
    return open_sources(
        hf_endpoint=hugging_face.endpoint,
        hf_token=TOKEN,
        civitai_endpoint=civitai.endpoint,
        civitai_token=TOKEN,
    )


def _install(
    sources: Sources, reference: str, folder: Path, *, config: Path | None = None
) -> tuple[RemoteModel, ModelDescriptor]:
    """All that a source does, in its order."""
    source = sources.source_for(reference)
    model = source.resolve(reference)
    files = source.fetch(model, folder / "model", fetcher=PlainFetcher(folder / "partial"))
    source.verify(model, files)
    found = inspect(folder / "model" / (model.main or ""), kind=model.kind, config=config)
    return model, source.to_model_descriptor(model, found, name=model.name, version=model.version)


def test_a_pipeline_of_hugging_face_becomes_a_model(
    hugging_face: FakeHuggingFace, sources: Sources, tiny_model: Path, tmp_path: Path
) -> None:
    repo = hugging_face.add("org/tiny-sdxl", tiny_model, build="StableDiffusionXLPipeline")
    repo.gated, repo.readers = "auto", {TOKEN}
    model, descriptor = _install(sources, "hf:org/tiny-sdxl", tmp_path)
    assert (descriptor.name, descriptor.kind) == ("tiny-sdxl", "sdxl")
    assert descriptor.source_uri == f"hf:org/tiny-sdxl@{repo.head.id}"
    assert descriptor.metadata["huggingface"]["revision"] == repo.head.id
    assert {file.path for file in descriptor.files} == {file.path for file in model.files}
    assert {question.token for question in hugging_face.requests} == {TOKEN}
    assert not [asked for asked in hugging_face.storage.requests if "Authorization" in asked.headers]
    assert {asked.status for asked in hugging_face.storage.requests} <= {200, 206}


def test_a_checkpoint_of_civitai_becomes_a_model(
    civitai: FakeCivitai, sources: Sources, tiny_model: Path, tiny_file: Path, tmp_path: Path
) -> None:
    version = civitai.add(HubVersion(1920523, 277058, [HubFile("tiny_xl.safetensors", tiny_file)], needs_token=True))
    _, descriptor = _install(sources, "civitai:277058@1920523", tmp_path, config=tiny_model)
    assert (descriptor.name, descriptor.version, descriptor.kind) == ("Tiny-XL", "1920523", "sdxl")
    assert descriptor.checkpoint_hash == hashlib.sha256(tiny_file.read_bytes()).hexdigest()
    assert descriptor.metadata["civitai"]["model_version_id"] == 1920523
    assert descriptor.metadata["layout"] == "file"
    assert all(question.method == "GET" for question in civitai.requests)
    assert not [asked for asked in civitai.storage.requests if "Authorization" in asked.headers]
    assert version.stored[version.files[0].id].requests


def test_an_address_that_expires_is_asked_for_again(civitai: FakeCivitai, sources: Sources, tmp_path: Path) -> None:
    body = bytes(range(256)) * 4096
    version = civitai.add(HubVersion(2, 1, [HubFile("x.safetensors", body)]))
    stored = version.stored[version.files[0].id]
    source = sources.source_for("civitai:1@2")
    model = source.resolve("civitai:1@2")
    civitai.requests.clear()
    stored.then(Fault(cut_after=300_000), Fault(status=403))
    source.fetch(model, tmp_path / "model", fetcher=PlainFetcher(tmp_path / "partial"))
    assert (tmp_path / "model" / "x.safetensors").read_bytes() == body
    assert 403 in {asked.status for asked in stored.requests}
    assert len(civitai.requests) > 1, "Civitai was asked for another address"
    assert stored.bytes_sent < 1.5 * len(body), "and it went on from where it was"


def test_a_lora_of_civitai_becomes_a_model(
    civitai: FakeCivitai, sources: Sources, tiny_model: Path, tmp_path: Path
) -> None:
    lora = lora_files.write_kohya(lora_files.layers_for(tiny_model), tmp_path / "grain.safetensors")
    civitai.add(HubVersion(6, 5, [HubFile("grain.safetensors", lora)], type="LORA", model_name="Film Grain"))
    _, descriptor = _install(sources, "civitai:5", tmp_path, config=tiny_model)
    assert (descriptor.name, descriptor.kind) == ("Film-Grain", "lora")
    assert descriptor.metadata["civitai"]["air"] == "urn:air:sdxl:lora:civitai:5@6"


def test_a_page_in_place_of_the_file_is_never_kept(civitai: FakeCivitai, sources: Sources, tmp_path: Path) -> None:
    civitai.add(HubVersion(2, 1, [HubFile("x.safetensors", b"x" * 5000)]))
    source = sources.source_for("civitai:1@2")
    model = source.resolve("civitai:1@2")
    civitai.gives_pages = True
    with pytest.raises((SourceForbidden, DownloadCorrupt)):
        source.fetch(model, tmp_path / "model", fetcher=PlainFetcher(tmp_path / "partial"))
    assert not (tmp_path / "model").exists()


def test_a_file_of_the_web_by_its_hash(sources: Sources, tiny_file: Path, tiny_model: Path, tmp_path: Path) -> None:
    with FileServer() as server:
        file = server.add("models/My%20XL.safetensors".replace("%20", " "), tiny_file)
        model, descriptor = _install(sources, f"{file.url}#sha256={file.sha256}", tmp_path / "a", config=tiny_model)
        assert (model.name, model.version, model.kind) == ("My-XL", file.sha256[:12], None)
        assert (descriptor.kind, descriptor.source_uri) == ("sdxl", f"{file.url}#sha256={file.sha256}")
        with pytest.raises(DownloadCorrupt):
            _install(sources, f"{file.url}#sha256={'0' * 64}", tmp_path / "b", config=tiny_model)
        assert not (tmp_path / "b" / "model").exists()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("x.ckpt", "is a pickle"),
        ("x.zip", "of a kind that is not kept"),
        ("x.json", "not of safetensors"),
        ("", "name"),
    ],
)
def test_the_web_gives_safetensors_only(sources: Sources, path: str, words: str) -> None:
    reference = f"https://host/{path}#sha256={'0' * 64}"
    with pytest.raises(InvalidRequest, match=words):
        sources.source_for(reference).resolve(reference)


def test_a_file_of_this_machine_is_copied(sources: Sources, tiny_file: Path, tiny_model: Path, tmp_path: Path) -> None:
    model, descriptor = _install(sources, f"file:{tiny_file}", tmp_path, config=tiny_model)
    assert (model.name, model.version, model.source_uri) == ("tiny_xl", "1", f"file:{tiny_file}")
    assert descriptor.kind == "sdxl"
    assert (tmp_path / "model" / "tiny_xl.safetensors").stat().st_ino != tiny_file.stat().st_ino


def test_of_a_folder_of_this_machine_only_the_model_is_copied(
    sources: Sources, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "my model"
    (folder / "unet").mkdir(parents=True)
    for path in tiny_model.rglob("*"):
        if path.is_file():
            link = folder / path.relative_to(tiny_model)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    (folder / "notes.txt").write_text("mine")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    model, descriptor = _install(sources, f"file:{folder}", tmp_path / "copy")
    copied = {path.name for path in (tmp_path / "copy" / "model").rglob("*") if path.is_file()}
    assert (model.name, descriptor.kind) == ("my-model", "sdxl")
    assert "model_index.json" in copied
    assert not copied & {"notes.txt", "diffusion_pytorch_model.bin"}
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))


def test_what_is_not_on_this_machine_is_said(sources: Sources, tmp_path: Path) -> None:
    def resolve(path: Path) -> RemoteModel:
        return sources.source_for(f"file:{path}").resolve(f"file:{path}")

    with pytest.raises(SourceNotFound, match="cannot be read here: No such file"):
        resolve(tmp_path / "none.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelCorrupt, match="no files"):
        resolve(tmp_path / "empty")
    (tmp_path / "x.ckpt").write_bytes(b"x")
    with pytest.raises(ModelCorrupt, match="Pickles can run programs"):
        resolve(tmp_path / "x.ckpt")
    for name in ("b.safetensors", "a.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InvalidRequest, match=f"Say which: file:{tmp_path}/a.safetensors, "):
        resolve(tmp_path)


def test_files_that_are_not_what_the_source_said_are_told(
    hugging_face: FakeHuggingFace, sources: Sources, tmp_path: Path
) -> None:
    hugging_face.add("org/repo", {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"weights"})
    source = sources.source_for("hf:org/repo")
    model = source.resolve("hf:org/repo")
    files = source.fetch(model, tmp_path / "model", fetcher=PlainFetcher(tmp_path / "partial"))
    source.verify(model, files)
    with pytest.raises(DownloadCorrupt, match=r"config\.json is not what"):
        source.verify(model, files[1:])
    with pytest.raises(DownloadCorrupt, match="is none of the model's files"):
        source.verify(model, (*files, type(files[0])("more.txt", 1, "0" * 64)))
    wrong = type(files[1])(files[1].path, files[1].size, "0" * 64)
    with pytest.raises(DownloadCorrupt, match=r"model\.safetensors is not what"):
        source.verify(model, (files[0], wrong))


def test_a_token_is_cleaned_before_it_is_used(
    hugging_face: FakeHuggingFace, civitai: FakeCivitai, caplog: pytest.LogCaptureFixture
) -> None:
    hugging_face.add("org/repo", {"x.safetensors": b"x"})
    civitai.add(HubVersion(2, 1, [HubFile("x.safetensors", b"x")]))
    endpoints = {"hf_endpoint": hugging_face.endpoint, "civitai_endpoint": civitai.endpoint}
    for given, sent in [(f" {TOKEN}\n", TOKEN), ("tök en\r\nX: y", None), ("", None)]:
        sources = open_sources(hf_token=given, civitai_token=given, **endpoints)
        for reference, hub in [("hf:org/repo", hugging_face), ("civitai:1@2", civitai)]:
            assert sources.source_for(reference).resolve(reference).files
            assert hub.requests[-1].token == sent
    assert {record.__dict__["setting"] for record in caplog.records if "token" in record.message} == {
        "HF_TOKEN",
        "DREAMFORGE_CIVITAI_TOKEN",
    }
    assert "tök" not in caplog.text


MIRROR = '''
"""Models of a mirror of our own."""

from dreamforge.models.remote import RemoteFile, RemoteModel
from dreamforge.models.sources.source import ModelSource


class MirrorSource(ModelSource):
    scheme = "mirror"
    expects = "mirror:NAME"

    def resolve(self, reference):
        name = reference.removeprefix("mirror:")
        file = RemoteFile(path=f"{name}.safetensors", url=URL, sha256=SHA256)
        return RemoteModel(source_uri=reference, name=name, version="1", files=(file,), main=file.path)
'''


class TestSourcesOfPackages:
    """A package adds a source by an entry point, and nothing else."""

    def _install(self, folder: Path, package: str, points: str, code: str = "") -> None:
        """What pip leaves of a package: its module, and what it says of itself."""
        about = folder / f"{package}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[dreamforge.model_sources]\n{points}\n")
        (folder / f"{package}.py").write_text(code)

    def test_a_package_adds_a_source(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_file: Path, tiny_model: Path
    ) -> None:
        with FileServer() as server:
            file = server.add("m", tiny_file)
            code = MIRROR.replace("URL", repr(file.url)).replace("SHA256", repr(file.sha256))
            self._install(tmp_path, "a_mirror", "mirror = a_mirror:MirrorSource", code)
            monkeypatch.syspath_prepend(tmp_path)
            sources = open_sources()
            assert sources.schemes == ("civitai", "file", "hf", "https", "mirror")
            model, descriptor = _install(sources, "mirror:tiny", tmp_path / "models", config=tiny_model)
        assert (model.name, descriptor.source_uri, descriptor.kind) == ("tiny", "mirror:tiny", "sdxl")
        assert descriptor.checkpoint_hash == file.sha256

    @pytest.mark.parametrize(
        ("points", "code", "words"),
        [
            ("broken = broken_one:Source", "import nothing_of_this_name", "broken_one fails with ModuleNotFoundError"),
            ("broken = broken_one:Nothing", "", "broken_one fails with AttributeError"),
            ("broken = broken_one:Source", "class Source:\n    def __init__(self, x): ...", "fails with TypeError"),
            ("broken = broken_one:Source", "class Source: ...", "is no source of that name"),
            (
                "broken = broken_one:MirrorSource",
                MIRROR.replace("URL", "''").replace("SHA256", "''"),
                "is no source of that name",
            ),
        ],
    )
    def test_a_broken_package_is_named_and_stops_no_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, points: str, code: str, words: str
    ) -> None:
        self._install(tmp_path, "broken_one", points, code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(__import__("sys").modules, "broken_one", raising=False)
        sources = open_sources()
        with pytest.raises(InvalidRequest, match=f"The source 'broken' does not work: .*{words}"):
            sources.source_for("broken:x")
        assert sources.source_for("hf:org/repo").scheme == "hf"

    def test_no_package_takes_the_place_of_a_built_in_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        code = MIRROR.replace("URL", "''").replace("SHA256", "''").replace('"mirror"', '"hf"')
        self._install(tmp_path, "a_thief", "hf = a_thief:MirrorSource", code)
        monkeypatch.syspath_prepend(tmp_path)
        with caplog.at_level(logging.WARNING):
            sources = open_sources()
        assert type(sources.source_for("hf:org/repo")).__module__ == "dreamforge.models.sources.huggingface"
        assert [record.__dict__["package"] for record in caplog.records] == ["a_thief"]

    def test_two_packages_of_one_name_are_neither(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for package in ("one_mirror", "two_mirror"):
            self._install(tmp_path, package, f"mirror = {package}:MirrorSource", MIRROR)
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(InvalidRequest, match="several packages add it: one_mirror, two_mirror"):
            open_sources().source_for("mirror:x")

    def test_nobody_adds_this_one(self, sources: Sources) -> None:
        with pytest.raises(InvalidRequest, match="No source here is called 's3', but civitai, file, hf, https"):
            sources.source_for("s3:bucket/x")
