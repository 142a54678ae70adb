"""Models of Civitai: which file, by which address, and what its refusals mean."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from dreamforge.errors import (
    DownloadCorrupt,
    ModelCorrupt,
    ModelIncompatible,
    SourceForbidden,
    SourceNotFound,
    SourceUnavailable,
)
from dreamforge.models.sources import attempts, civitai_api
from dreamforge.models.sources.civitai import CivitaiSource
from dreamforge.models.weights import Kind
from tests.hubs.civitai import FakeCivitai, HubFile, HubVersion
from tests.hubs.file_server import FileServer
from tests.hubs.hosting import Fault
from tests.hubs.hub_server import Answer, of_json

TOKEN = "civitai_of_a_test"
BODY = b"weights of a test"
REFERENCE = "civitai:277058@1920523"


@pytest.fixture
def hub() -> Iterator[FakeCivitai]:
    with FakeCivitai() as hub:
        hub.tokens = {TOKEN}
        yield hub


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "_PAUSES", (0.0, 0.0))


def _source(hub: FakeCivitai, token: str | None = None) -> CivitaiSource:
    return CivitaiSource(endpoint=hub.endpoint, token=token)


def _add(hub: FakeCivitai, *files: HubFile) -> HubVersion:
    return hub.add(HubVersion(1920523, 277058, list(files) or [HubFile("tiny_v1.safetensors", BODY)]))


def test_a_version_is_its_file_with_its_hash(hub: FakeCivitai) -> None:
    version = _add(hub)
    model = _source(hub).resolve(REFERENCE)
    (file,) = model.files
    assert file.url == f"{hub.endpoint}/api/download/models/1920523"
    assert (file.path, file.size, file.sha256) == ("tiny_v1.safetensors", len(BODY), hashlib.sha256(BODY).hexdigest())
    assert (model.source_uri, model.name, model.version) == (REFERENCE, "Tiny-XL", "1920523")
    assert (model.main, model.kind) == ("tiny_v1.safetensors", Kind.CHECKPOINT)
    assert model.metadata["civitai"] == {
        "model_id": 277058,
        "model_version_id": 1920523,
        "file_id": version.files[0].id,
        "air": "urn:air:sdxl:checkpoint:civitai:277058@1920523",
        "base_model": "SDXL 1.0",
        "trained_words": ["tiny style"],
    }


def test_without_a_version_it_is_the_newest_that_is_published(hub: FakeCivitai) -> None:
    _add(hub)
    hub.add(HubVersion(2000000, 277058, [HubFile("b.safetensors", b"b")]))
    hub.add(HubVersion(2100000, 277058, [HubFile("c.safetensors", b"c")], is_published=False))
    assert _source(hub).resolve("civitai:277058").source_uri == "civitai:277058@2000000"


def test_without_a_version_it_is_one_of_sdxl_that_everybody_may_have(hub: FakeCivitai) -> None:
    _add(hub)
    newer = [HubVersion(number, 277058, [HubFile("b.safetensors", b"b")]) for number in (2000000, 2000001)]
    newer[0].base_model, newer[1].availability = "Flux.1 D", "EarlyAccess"
    for version in newer:
        hub.add(version)
    assert _source(hub).resolve("civitai:277058").source_uri == REFERENCE
    hub.versions[1920523].base_model = "SD 1.5"
    hub.versions[2000001].base_model = "Wan Video"
    with pytest.raises(ModelIncompatible, match="is for Wan Video"):
        _source(hub).resolve("civitai:277058")


def test_an_air_is_as_good(hub: FakeCivitai) -> None:
    _add(hub)
    air = "civitai:urn:air:sdxl:checkpoint:civitai:277058@1920523"
    assert _source(hub).resolve(air) == _source(hub).resolve(REFERENCE)


def test_a_version_of_another_model_is_said(hub: FakeCivitai) -> None:
    _add(hub)
    with pytest.raises(SourceNotFound, match="did you mean civitai:277058@1920523"):
        _source(hub).resolve("civitai:1@1920523")


@pytest.mark.parametrize(
    ("type", "kind"), [("Checkpoint", "checkpoint"), ("LORA", "lora"), ("LoCon", "lora"), ("VAE", "vae")]
)
def test_the_kind_is_the_models_own(hub: FakeCivitai, type: str, kind: str) -> None:
    _add(hub).type = type
    assert _source(hub).resolve(REFERENCE).kind == kind


@pytest.mark.parametrize("base", ["SDXL 1.0", "SDXL Lightning", "Pony", "Illustrious", "NoobAI", "Other"])
def test_families_of_sdxl_are_taken(hub: FakeCivitai, base: str) -> None:
    _add(hub).base_model = base
    assert _source(hub).resolve(REFERENCE).metadata["civitai"]["base_model"] == base


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base_model": "SD 1.5"}, "is for SD 1.5, not for SDXL"),
        ({"base_model": "Flux.1 D"}, r"is for Flux\.1 D"),
        ({"base_model": "Pony V7"}, "is for Pony V7"),
        ({"base_model": ""}, "is for nothing that is named"),
        ({"base_model_type": "Inpainting"}, "for inpainting"),
        ({"base_model_type": "Refiner"}, "for refiner"),
        ({"type": "Controlnet"}, "is a Controlnet"),
        ({"type": "TextualInversion"}, "is a TextualInversion"),
        ({"type": "DoRA"}, "is a DoRA"),
    ],
)
def test_what_is_not_of_sdxl_is_refused_before_a_download(hub: FakeCivitai, change: dict[str, str], words: str) -> None:
    version = _add(hub)
    for name, value in change.items():
        setattr(version, name, value)
    with pytest.raises(ModelIncompatible, match=words):
        _source(hub).resolve(REFERENCE)
    assert not hub.asked("/api/download")


class TestTheFile:
    """Of several, the one to draw with."""

    FULL = HubFile("full.safetensors", b"f" * 40, size="full", precision="fp32", is_primary=False, id=1)
    PRUNED = HubFile("pruned.safetensors", b"p" * 20, type="Pruned Model", is_primary=False, id=2)
    PICKLE = HubFile("old.ckpt", b"k" * 10, format="PickleTensor", is_primary=True, id=3)
    VAE = HubFile("own.vae.safetensors", b"v" * 5, type="VAE", is_primary=False, id=4)
    DATA = HubFile("training.zip", b"z", type="Training Data", format="Other", is_primary=False, id=5)

    def test_civitais_own_choice_comes_first(self, hub: FakeCivitai) -> None:
        primary = HubFile("main.safetensors", b"m" * 60, precision="fp32", is_primary=True, id=6)
        _add(hub, self.FULL, self.PRUNED, primary, self.VAE, self.DATA)
        assert _source(hub).resolve(REFERENCE).main == "main.safetensors"

    def test_in_place_of_a_pickle_the_smallest_of_half_precision(self, hub: FakeCivitai) -> None:
        _add(hub, self.FULL, self.PICKLE, self.PRUNED, self.VAE, self.DATA)
        model = _source(hub).resolve(REFERENCE)
        assert model.main == "pruned.safetensors"
        assert "format=SafeTensor" in model.files[0].url

    def test_one_can_be_asked_for(self, hub: FakeCivitai) -> None:
        _add(hub, self.FULL, self.PRUNED)
        model = _source(hub).resolve(f"{REFERENCE}+1")
        assert (model.main, model.source_uri) == ("full.safetensors", f"{REFERENCE}+1")
        with pytest.raises(SourceNotFound, match=r"has no file 9; it has 1 \(full\.safetensors\), 2"):
            _source(hub).resolve(f"{REFERENCE}+9")

    def test_a_pickle_is_never_taken(self, hub: FakeCivitai) -> None:
        _add(hub, self.PICKLE, self.VAE)
        for reference in (REFERENCE, f"{REFERENCE}+3"):
            with pytest.raises(ModelCorrupt, match="Pickles can run programs"):
                _source(hub).resolve(reference)

    def test_a_pickle_by_the_name_of_safetensors_is_none(self, hub: FakeCivitai) -> None:
        _add(hub, HubFile("x.safetensors", b"k", format="PickleTensor"))
        with pytest.raises(ModelCorrupt):
            _source(hub).resolve(REFERENCE)

    @pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "a\\x.safetensors", "con.safetensors"])
    def test_a_name_that_leads_elsewhere_is_refused(self, hub: FakeCivitai, name: str) -> None:
        version = _add(hub)
        version.files[0].name = name
        with pytest.raises(DownloadCorrupt):
            _source(hub).resolve(REFERENCE)

    @pytest.mark.parametrize("hash", [None, "A5F58EB1C3", "../../" + "0" * 58])
    def test_without_a_hash_it_is_not_fetched(self, hub: FakeCivitai, hash: str | None) -> None:
        _add(hub, HubFile("x.safetensors", BODY, hash=hash))
        with pytest.raises(DownloadCorrupt, match="does not tell the hash"):
            _source(hub).resolve(REFERENCE)

    def test_a_size_that_was_rounded_is_no_size(self, hub: FakeCivitai) -> None:
        _add(hub, HubFile("x.safetensors", BODY, size_kb=6775430.35))
        assert _source(hub).resolve(REFERENCE).files[0].size is None

    def test_a_name_in_another_alphabet_is_the_files(self, hub: FakeCivitai) -> None:
        version = _add(hub)
        version.model_name = "麦橘写实"
        assert _source(hub).resolve(REFERENCE).name == "tiny_v1"
        version.files[0].name = "麦橘.safetensors"
        assert _source(hub).resolve(REFERENCE).name == "civitai-277058"


class TestTheAddress:
    """Where the file can be had is found out before."""

    def test_by_its_number_where_its_words_are_lost(self, hub: FakeCivitai) -> None:
        version = _add(hub)
        version.words_are_lost = True
        model = _source(hub).resolve(REFERENCE)
        assert model.files[0].url == f"{hub.endpoint}/api/download/models/1920523?fileId={version.files[0].id}"

    def test_it_is_asked_for_one_byte_and_storage_for_none(self, hub: FakeCivitai) -> None:
        _add(hub)
        _source(hub, TOKEN).resolve(REFERENCE)
        (question,) = hub.asked("/api/download")
        assert (question.method, question.headers["range"]) == ("GET", "bytes=0-0")
        assert all(question.headers["user-agent"].startswith("dreamforge/") for question in hub.requests)
        assert not hub.storage.requests

    def test_the_token_goes_to_the_hub_alone(self, hub: FakeCivitai) -> None:
        version = _add(hub)
        source = _source(hub, TOKEN)
        model = source.resolve(REFERENCE)
        assert {question.token for question in hub.requests} == {TOKEN}
        assert not any("token" in question.query for question in hub.requests)
        assert source.locate(model.files[0]).headers["Authorization"] == f"Bearer {TOKEN}"
        assert "Authorization" not in _source(hub).locate(model.files[0]).headers
        assert TOKEN not in f"{model} {source.locate(model.files[0])}"
        assert version.needs_token is False

    def test_an_address_of_another_host_is_not_asked(self, hub: FakeCivitai) -> None:
        _add(hub)
        with FakeCivitai() as elsewhere:
            said = json.dumps(hub.describe(hub.versions[1920523])).replace(hub.endpoint, elsewhere.endpoint)
            hub.then(Answer(200, said.encode(), {"Content-Type": "application/json"}))
            model = _source(hub, TOKEN).resolve(REFERENCE)
            assert not elsewhere.requests
            assert model.files[0].url.startswith(hub.endpoint)

    def test_no_redirect_of_the_api_is_followed(self, hub: FakeCivitai) -> None:
        with FakeCivitai() as elsewhere:
            hub.then(*[Answer(301, headers={"Location": f"{elsewhere.endpoint}/api/v1/model-versions/1920523"})] * 3)
            with pytest.raises(SourceUnavailable, match="DREAMFORGE_CIVITAI_ENDPOINT"):
                _source(hub, TOKEN).resolve(REFERENCE)
            assert not elsewhere.requests


class TestRefusals:
    """Each says what to do."""

    def test_for_those_who_are_logged_in(self, hub: FakeCivitai) -> None:
        _add(hub).needs_token = True
        with pytest.raises(SourceForbidden, match=r"nobody without a token.*DREAMFORGE_CIVITAI_TOKEN"):
            _source(hub).resolve(REFERENCE)
        with pytest.raises(SourceForbidden, match=r"does not give Tiny XL v1\.0 to the account") as caught:
            _source(hub, "s3cret").resolve(REFERENCE)
        assert "s3cret" not in f"{caught.value.message} {caught.value.details}"
        assert _source(hub, TOKEN).resolve(REFERENCE).files

    @pytest.mark.parametrize(
        "answer",
        [
            Answer(307, headers={"Location": "/login?returnUrl=/models/277058&reason=download-auth"}),
            Answer(307, headers={"Location": "https://civitai.com/login?reason=download-auth"}),
            Answer(200, b"<html>Log in</html>", {"Content-Type": "text/html; charset=utf-8"}),
            of_json({"error": "Unauthorized", "message": "The creator of this asset requires you to be logged in"}),
            of_json({"error": "Unauthorized"}, 401),
            Answer(403, b"Forbidden"),
        ],
    )
    def test_however_it_says_so(self, hub: FakeCivitai, answer: Answer) -> None:
        _add(hub)
        hub.instead["/api/download"] = answer
        with pytest.raises(SourceForbidden, match="DREAMFORGE_CIVITAI_TOKEN"):
            _source(hub).resolve(REFERENCE)

    def test_early_access_ends_on_a_day(self, hub: FakeCivitai) -> None:
        version = _add(hub)
        version.availability, version.early_access_ends = "EarlyAccess", "9998-02-03T04:05:06.000Z"
        with pytest.raises(SourceForbidden, match="early access until 9998-02-03: buy it there, or wait"):
            _source(hub, TOKEN).resolve(REFERENCE)
        version.buyers = {TOKEN}
        assert _source(hub, TOKEN).resolve(REFERENCE).files
        version.buyers, version.early_access_ends = set(), "2024-02-03T04:05:06.000Z"
        with pytest.raises(SourceForbidden, match="If the token is old"):
            _source(hub, TOKEN).resolve(REFERENCE)

    def test_what_is_for_use_on_civitai_only(self, hub: FakeCivitai) -> None:
        _add(hub).usage_control = "Generation"
        with pytest.raises(SourceForbidden, match="on Civitai only"):
            _source(hub).resolve(REFERENCE)

    def test_what_its_creator_has_archived(self, hub: FakeCivitai) -> None:
        _add(hub).files = []
        with pytest.raises(SourceForbidden, match="archived"):
            _source(hub).resolve(REFERENCE)

    @pytest.mark.parametrize("reference", ["civitai:9", "civitai:9@9"])
    def test_no_such_model(self, hub: FakeCivitai, reference: str) -> None:
        with pytest.raises(SourceNotFound, match=r"Civitai has no (model|version) 9"):
            _source(hub).resolve(reference)

    def test_a_file_that_is_lost(self, hub: FakeCivitai) -> None:
        version = _add(hub)
        version.words_are_lost = True
        hub.instead["/api/download"] = Answer(404)
        with pytest.raises(SourceNotFound, match="does not have it"):
            _source(hub).resolve(REFERENCE)

    @pytest.mark.parametrize("status", [429, 500, 502, 503, 520])
    def test_a_hub_in_trouble_is_asked_three_times(self, hub: FakeCivitai, status: int) -> None:
        _add(hub)
        hub.then(Answer(status), Answer(status, headers={"Retry-After": "0"}))
        assert _source(hub).resolve(REFERENCE).files
        hub.requests.clear()
        hub.then(*[Answer(status)] * 3)
        with pytest.raises(SourceUnavailable, match="Try again later"):
            _source(hub).resolve(REFERENCE)
        assert len(hub.requests) == 3

    def test_who_asks_for_minutes_is_not_asked_again(self, hub: FakeCivitai) -> None:
        hub.then(Answer(429, headers={"Retry-After": "300"}))
        with pytest.raises(SourceUnavailable, match="Try again in 300 seconds"):
            _source(hub).resolve(REFERENCE)
        assert len(hub.requests) == 1

    @pytest.mark.parametrize(
        "answer",
        [
            Answer(200, b"<html>", {"Content-Type": "text/html"}),
            Answer(200, b"[" * 100_000, {"Content-Type": "application/json"}),
            of_json([]),
            of_json({}),
            of_json({"id": 1920523}),
            of_json({"id": True, "modelId": 277058}),
            of_json({"id": 1920524, "modelId": 277058}),
            Answer(200, b'{"id": 1920523, "modelId"', {"Content-Type": "application/json"}, cuts=True),
            Answer(200, b"x" * 200, {"Content-Encoding": "gzip"}),
        ],
    )
    def test_an_answer_that_is_none(self, hub: FakeCivitai, answer: Answer) -> None:
        hub.then(*[answer] * 3)
        with pytest.raises(SourceUnavailable, match="Civitai"):
            _source(hub).resolve(REFERENCE)

    def test_an_answer_without_an_end(self, hub: FakeCivitai, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(civitai_api, "_LARGEST_ANSWER", 1000)
        hub.then(*[Answer(200, b"x" * 5000)] * 3)
        with pytest.raises(SourceUnavailable, match="far too much"):
            _source(hub).resolve(REFERENCE)

    def test_a_silent_hub_is_given_up(self, hub: FakeCivitai, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(civitai_api, "_SECONDS", 0.2)
        hub.then(*[Answer(200, b"{}", {"Content-Length": "100000"})] * 3)
        with pytest.raises(SourceUnavailable, match="ReadTimeout"):
            _source(hub).resolve(REFERENCE)

    def test_nobody_answers(self) -> None:
        with FakeCivitai() as gone:
            endpoint = gone.endpoint
        with pytest.raises(SourceUnavailable, match=rf"does not answer at {endpoint} \(\w+\)"):
            CivitaiSource(endpoint=endpoint, token=None).resolve(REFERENCE)

    def test_a_hub_that_answers_byte_by_byte_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(civitai_api, "_LONGEST_ANSWER", 0.3)
        with FileServer() as server:
            server.add("api/v1/model-versions/1920523", b"{" * 5000).fault = Fault(drip=0.05, drip_bytes=1)
            with pytest.raises(SourceUnavailable, match="far too slowly"):
                CivitaiSource(endpoint=server.root, token=None).resolve(REFERENCE)


def test_addresses_that_are_none_are_not_asked(hub: FakeCivitai) -> None:
    """Whatever the hub says in place of one: the file is found by its number."""
    version = _add(hub)
    for address in ("https://[", "http://", "//civitai.com/x", "\udcff", hub.endpoint.replace("127", "user@127")):
        said = hub.describe(version)
        files: Any = said["files"]
        files[0]["downloadUrl"] = address
        hub.then(of_json(said))
        (file,) = _source(hub, TOKEN).resolve(REFERENCE).files
        assert file.url == f"{hub.endpoint}/api/download/models/1920523?fileId={version.files[0].id}"
    hub.instead["/api/download"] = Answer(307, headers={"Location": "https://["})
    with pytest.raises(SourceForbidden):
        _source(hub).resolve(REFERENCE)


def test_an_answer_whose_head_never_ends_is_left() -> None:
    with FileServer() as server:
        server.add("api/v1/models/1", b"").fault = Fault(endless_head=True)
        api = civitai_api.CivitaiApi(endpoint=server.root, token=None, longest=0.5)
        with pytest.raises(SourceUnavailable, match="too long"):
            api.get("/api/v1/models/1")
