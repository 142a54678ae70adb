"""Models of Hugging Face: what is asked, what is chosen, and what refusals mean."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamforge.errors import (
    DownloadCorrupt,
    InvalidRequest,
    ModelIncompatible,
    SourceForbidden,
    SourceNotFound,
    SourceUnavailable,
)
from dreamforge.models.sources import attempts, huggingface
from dreamforge.models.sources.huggingface import HuggingFaceSource
from dreamforge.models.weights import Kind
from tests.hubs.file_server import FileServer
from tests.hubs.hosting import Fault
from tests.hubs.hub_server import Answer, of_json
from tests.hubs.huggingface import FakeHuggingFace, too_many_requests

SDXL = "StableDiffusionXLPipeline"
TOKEN = "hf_of_a_test"
WEIGHTS = {"model.safetensors": b"weights"}


@pytest.fixture
def hub() -> Iterator[FakeHuggingFace]:
    with FakeHuggingFace() as hub:
        hub.tokens = {TOKEN}
        yield hub


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "_PAUSES", (0.0, 0.0))


def _source(hub: FakeHuggingFace, token: str | None = None) -> HuggingFaceSource:
    return HuggingFaceSource(endpoint=hub.endpoint, token=token)


def test_a_pipeline_is_pinned_to_its_commit_with_every_hash(hub: FakeHuggingFace, tiny_model: Path) -> None:
    repo = hub.add("org/tiny-sdxl", tiny_model, build=SDXL)
    model = _source(hub).resolve("hf:org/tiny-sdxl")
    commit = repo.head.id
    assert model.source_uri == f"hf:org/tiny-sdxl@{commit}"
    assert (model.name, model.version, model.kind, model.main) == ("tiny-sdxl", commit[:12], Kind.CHECKPOINT, None)
    assert model.metadata["huggingface"] == {"repo": "org/tiny-sdxl", "revision": commit, "file": None}
    for file in model.files:
        assert file.size == (tiny_model / file.path).stat().st_size
        assert file.url == f"{hub.endpoint}/org/tiny-sdxl/resolve/{commit}/{file.path}"
        is_weights = file.path.endswith(".safetensors")
        assert file.sha256 == (repo.head.stored[file.path].sha256 if is_weights else None)
        assert bool(file.git_sha1) is not is_weights
    assert model.size_bytes == sum(file.size or 0 for file in model.files)


def test_a_branch_that_moves_does_not_move_what_was_resolved(hub: FakeHuggingFace) -> None:
    before = hub.add("org/repo", WEIGHTS).head.id
    pinned = _source(hub).resolve("hf:org/repo@main")
    hub.add("org/repo", {"model.safetensors": b"other weights"})
    assert _source(hub).resolve(pinned.source_uri) == pinned
    assert pinned.source_uri == f"hf:org/repo@{before}"
    assert _source(hub).resolve("hf:org/repo").files[0].sha256 != pinned.files[0].sha256


def test_a_revision_may_be_a_branch_with_slashes(hub: FakeHuggingFace) -> None:
    hub.add("org/repo", WEIGHTS)
    other = hub.add("org/repo", {"model.safetensors": b"proposed"}, branch="refs/pr/1")
    assert _source(hub).resolve("hf:org/repo@refs/pr/1").source_uri.endswith(other.branches["refs/pr/1"])


def test_one_file_of_a_repository(hub: FakeHuggingFace) -> None:
    repo = hub.add("org/repo", {"sub/My Model.safetensors": b"x", "model_index.json": b"{}", "b.ckpt": b"y"})
    model = _source(hub).resolve("hf:org/repo:sub/My Model.safetensors")
    assert [file.path for file in model.files] == ["My Model.safetensors"], "its folder is not made again"
    assert model.files[0].url == f"{hub.endpoint}/org/repo/resolve/{repo.head.id}/sub/My%20Model.safetensors"
    assert (model.main, model.name, model.kind) == ("My Model.safetensors", "My-Model", None)
    assert _source(hub).resolve(model.source_uri) == model
    with pytest.raises(SourceNotFound, match=r"It has sub/My Model\.safetensors"):
        _source(hub).resolve("hf:org/repo:other.safetensors")
    with pytest.raises(InvalidRequest, match="is a pickle"):
        _source(hub).resolve("hf:org/repo:b.ckpt")
    with pytest.raises(InvalidRequest, match="no safetensors file"):
        _source(hub).resolve("hf:org/repo:model_index.json")


def test_a_pipeline_of_another_family_is_refused_before_anything_is_fetched(hub: FakeHuggingFace) -> None:
    hub.add("org/flux", {"model_index.json": b"{}", **WEIGHTS}, build="FluxPipeline")
    with pytest.raises(ModelIncompatible, match="org/flux is a FluxPipeline"):
        _source(hub).resolve("hf:org/flux")
    assert len(hub.requests) == 1


def test_the_token_is_sent_to_the_hub_and_never_by_itself(
    hub: FakeHuggingFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add("org/repo", WEIGHTS)
    _source(hub).resolve("hf:org/repo")
    assert hub.requests[-1].token is None, "nobody gave one to the source"
    source = _source(hub, TOKEN)
    model = source.resolve("hf:org/repo")
    assert hub.requests[-1].token == TOKEN
    assert dict(source.locate(model.files[0]).headers) == {"Authorization": f"Bearer {TOKEN}"}
    assert TOKEN not in f"{model} {source.locate(model.files[0])} {vars(model)}"
    assert not _source(hub).locate(model.files[0]).headers


def test_a_token_does_not_follow_to_another_host(hub: FakeHuggingFace) -> None:
    with FakeHuggingFace() as elsewhere:
        elsewhere.add("org/repo", WEIGHTS)
        hub.then(Answer(307, headers={"Location": f"{elsewhere.endpoint}/api/models/org/repo?blobs=True"}))
        _source(hub, TOKEN).resolve("hf:org/repo")
        assert [question.token for question in elsewhere.requests] == [None]


def test_a_repository_that_was_renamed_is_known_by_its_new_name(hub: FakeHuggingFace) -> None:
    repo = hub.add("new-org/new-name", WEIGHTS)
    hub.moved["old-org/old-name"] = "new-org/new-name"
    model = _source(hub).resolve("hf:old-org/old-name")
    assert model.source_uri == f"hf:new-org/new-name@{repo.head.id}"
    assert model.name == "new-name"


class TestRefusals:
    """Each says what to do."""

    @pytest.mark.parametrize("gated", ["auto", "manual"])
    def test_a_gated_repository(self, hub: FakeHuggingFace, gated: str) -> None:
        repo = hub.add("org/repo", WEIGHTS)
        repo.gated = "auto" if gated == "auto" else "manual"
        page = f"{hub.endpoint}/org/repo"
        with pytest.raises(SourceForbidden, match=f"Accept its licence at {page}, then .* set HF_TOKEN"):
            _source(hub).resolve("hf:org/repo")
        with pytest.raises(SourceForbidden, match=f"ask for access, at {page} with the account that HF_TOKEN is of"):
            _source(hub, TOKEN).resolve("hf:org/repo")
        assert not hub.storage.requests, "nothing was fetched to find that out"
        repo.readers = {TOKEN}
        assert _source(hub, TOKEN).resolve("hf:org/repo").files

    def test_a_private_repository_is_as_one_that_is_not_there(self, hub: FakeHuggingFace) -> None:
        hub.add("org/repo", WEIGHTS).private = True
        for name in ("hf:org/repo", "hf:org/no-such"):
            with pytest.raises(SourceNotFound, match=r"has no repository org/\S+\. If it is private, .* set HF_TOKEN"):
                _source(hub).resolve(name)
            with pytest.raises(SourceNotFound, match="or none that the account of HF_TOKEN may see"):
                _source(hub, TOKEN).resolve(name)
        hub.repos["org/repo"].readers = {TOKEN}
        assert _source(hub, TOKEN).resolve("hf:org/repo").files

    def test_a_token_that_is_none(self, hub: FakeHuggingFace) -> None:
        hub.add("org/repo", WEIGHTS)
        with pytest.raises(SourceForbidden, match="does not know the token in HF_TOKEN") as caught:
            _source(hub, "hf_s3cret").resolve("hf:org/repo")
        assert "s3cret" not in f"{caught.value.message} {caught.value.details}"

    def test_no_such_revision(self, hub: FakeHuggingFace) -> None:
        hub.add("org/repo", WEIGHTS)
        with pytest.raises(SourceNotFound, match="org/repo has no revision nowhere"):
            _source(hub).resolve("hf:org/repo@nowhere")

    def test_a_closed_repository(self, hub: FakeHuggingFace) -> None:
        hub.add("org/repo", WEIGHTS).disabled = True
        with pytest.raises(SourceForbidden, match="has closed org/repo"):
            _source(hub).resolve("hf:org/repo")

    @pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
    def test_a_hub_in_trouble_is_asked_three_times(self, hub: FakeHuggingFace, status: int) -> None:
        hub.add("org/repo", WEIGHTS)
        hub.then(Answer(status), Answer(status))
        assert _source(hub).resolve("hf:org/repo").files
        hub.then(Answer(status), Answer(status), Answer(status))
        with pytest.raises(SourceUnavailable, match="Try again later"):
            _source(hub).resolve("hf:org/repo")
        assert len(hub.requests) == 6

    def test_too_many_requests(self, hub: FakeHuggingFace) -> None:
        hub.add("org/repo", WEIGHTS)
        hub.then(too_many_requests(0), Answer(429, headers={"Retry-After": "0"}))
        assert _source(hub).resolve("hf:org/repo").files
        hub.then(too_many_requests(240))
        with pytest.raises(SourceUnavailable, match="Try again in 240 seconds; with a token"):
            _source(hub).resolve("hf:org/repo")
        assert len(hub.requests) == 4, "who asks for minutes is not asked again"

    @pytest.mark.parametrize(
        "answer",
        [
            Answer(200, b"<html>Log in to the proxy</html>", {"Content-Type": "text/html"}),
            of_json([]),
            of_json({}),
            of_json({"id": "org/repo", "sha": "main", "siblings": []}),
            of_json({"id": "../repo", "sha": "a" * 40, "siblings": []}),
            of_json({"id": "org/repo", "sha": "a" * 40}),
            of_json({"id": "org/repo", "sha": "a" * 40, "siblings": [{"name": "x"}]}),
            Answer(200, b'{"id": "org/repo", "sha"', {"Content-Type": "application/json"}, cuts=True),
        ],
    )
    def test_an_answer_that_is_none(self, hub: FakeHuggingFace, answer: Answer) -> None:
        hub.then(*[answer] * 3)
        with pytest.raises(SourceUnavailable, match="Hugging Face"):
            _source(hub).resolve("hf:org/repo")

    @pytest.mark.parametrize(
        "entry",
        [
            {"rfilename": "x.safetensors", "size": 3},
            {"rfilename": "x.safetensors", "size": 3, "blobId": "../../x"},
            {"rfilename": "x.safetensors", "size": -3, "blobId": "a" * 40},
            {"rfilename": "x.safetensors", "blobId": "a" * 40},
            {
                "rfilename": "x.safetensors",
                "size": 3,
                "blobId": "a" * 40,
                "lfs": {"sha256": "../../etc", "size": 3, "pointerSize": 3},
            },
            {"rfilename": "../x.safetensors", "size": 3, "blobId": "a" * 40},
            {"rfilename": "a\\x.safetensors", "size": 3, "blobId": "a" * 40},
        ],
    )
    def test_a_file_without_a_hash_or_with_a_bad_name_is_not_fetched(
        self, hub: FakeHuggingFace, entry: dict[str, object]
    ) -> None:
        hub.then(of_json({"id": "org/repo", "sha": "a" * 40, "siblings": [entry]}))
        with pytest.raises(DownloadCorrupt):
            _source(hub).resolve("hf:org/repo")

    def test_a_configuration_of_gigabytes_is_not_fetched(self, hub: FakeHuggingFace) -> None:
        weights = {"rfilename": "diffusion_pytorch_model.safetensors", "size": 3, "blobId": "a" * 40}
        config = {"rfilename": "config.json", "size": 2**32, "blobId": "a" * 40}
        hub.then(of_json({"id": "org/repo", "sha": "a" * 40, "siblings": [weights, config]}))
        with pytest.raises(DownloadCorrupt, match=r"config\.json has 4294967296 bytes"):
            _source(hub).resolve("hf:org/repo")

    def test_nobody_answers(self) -> None:
        with FakeHuggingFace() as gone:
            endpoint = gone.endpoint
        with pytest.raises(SourceUnavailable, match=rf"does not answer at {endpoint} \(\w+\)"):
            HuggingFaceSource(endpoint=endpoint, token=None).resolve("hf:org/repo")

    def test_a_silent_hub_is_given_up(self, hub: FakeHuggingFace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface, "_SECONDS", 0.2)
        hub.then(*[Answer(200, b"{}" * 100, {"Content-Length": "100000"})] * 3)
        with pytest.raises(SourceUnavailable, match="ReadTimeout"):
            _source(hub).resolve("hf:org/repo")

    def test_a_hub_that_answers_byte_by_byte_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface, "_LONGEST_ANSWER", 0.3)
        with FileServer() as server:
            server.add("api/models/org/repo", b"{" * 5000).fault = Fault(drip=0.05, drip_bytes=1)
            with pytest.raises(SourceUnavailable, match="takes too long"):
                HuggingFaceSource(endpoint=server.root, token=None).resolve("hf:org/repo")
