"""How people write where a model comes from."""

import contextlib
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamforge.errors import InvalidRequest
from dreamforge.models.references import (
    EXPECTED,
    LONGEST_REFERENCE,
    CivitaiReference,
    FileReference,
    HuggingFaceReference,
    OtherReference,
    Reference,
    UrlReference,
    parse,
)

HASH = "0123456789abcdef" * 4

WRITTEN = [
    ("hf:stabilityai/sdxl-vae", HuggingFaceReference("stabilityai/sdxl-vae")),
    ("hf:org/repo@v1.0", HuggingFaceReference("org/repo", "v1.0")),
    ("hf:org/repo@refs/pr/4", HuggingFaceReference("org/repo", "refs/pr/4")),
    ("hf:org/repo:a.safetensors", HuggingFaceReference("org/repo", None, "a.safetensors")),
    ("hf:org/repo@main:sub/a@2.safetensors", HuggingFaceReference("org/repo", "main", "sub/a@2.safetensors")),
    ("  HF:org/repo  ", HuggingFaceReference("org/repo")),
    ("civitai:277058", CivitaiReference(277058)),
    ("civitai:277058@1920523", CivitaiReference(277058, 1920523)),
    ("civitai:827184@2514310+2402203", CivitaiReference(827184, 2514310, 2402203)),
    ("civitai:urn:air:sdxl:checkpoint:civitai:277058@1920523", CivitaiReference(277058, 1920523)),
    ("urn:air:sdxl:lora:civitai:328553@368189", CivitaiReference(328553, 368189)),
    ("civitai:air:sdxl:lora:civitai:328553@368189", CivitaiReference(328553, 368189)),
    ("urn:air:sdxl:checkpoint:civitai:827184@2514310+2402203.safetensors", CivitaiReference(827184, 2514310, 2402203)),
    ("urn:air:lora:civitai:328553", CivitaiReference(328553)),
    (f"https://host/a/b.safetensors#sha256={HASH}", UrlReference("https://host/a/b.safetensors", HASH)),
    (f"https://host/b?id=3#sha256={HASH.upper()}", UrlReference("https://host/b?id=3", HASH)),
    (f"http://127.0.0.1:80/b#sha256={HASH}", UrlReference("http://127.0.0.1:80/b", HASH)),
    ("file:/models/my model%20.safetensors", FileReference(PurePosixPath("/models/my model%20.safetensors"))),
    ("file:///models/my%20model.safetensors", FileReference(PurePosixPath("/models/my model.safetensors"))),
    ("mirror:anything at all", OtherReference("mirror", "mirror:anything at all")),
]


@pytest.mark.parametrize(("text", "reference"), WRITTEN)
def test_what_is_written_is_understood(text: str, reference: Reference) -> None:
    assert parse(text) == reference


@pytest.mark.parametrize("reference", [reference for _, reference in WRITTEN], ids=str)
def test_a_reference_reads_as_it_is_written(reference: Reference) -> None:
    assert parse(str(reference)) == reference
    assert parse(str(reference)).scheme == reference.scheme


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("hf:", "hf"),
        ("hf:gpt2", "hf"),
        ("hf:a/b/c", "hf"),
        ("hf:../b", "hf"),
        ("hf:a--b/c", "hf"),
        ("hf:a/b.git", "hf"),
        ("hf:org/" + "x" * 100, "hf"),
        ("hf:org/repo@", "hf"),
        ("hf:org/repo@../x", "hf"),
        ("hf:org/repo@a b", "hf"),
        ("hf:org/repo:../../etc/passwd.txt", "hf"),
        ("hf:org/repo:/etc/passwd.txt", "hf"),
        ("civitai:", "civitai"),
        ("civitai:juggernaut", "civitai"),
        ("civitai:0", "civitai"),
        ("civitai:12@", "civitai"),
        ("civitai:12+3", "civitai"),
        ("civitai:-3", "civitai"),
        ("civitai:\uff11\uff12", "civitai"),
        ("civitai:12.safetensors", "civitai"),
        ("civitai:urn:air:sdxl:checkpoint:leonardo:12@3", "civitai"),
        ("civitai:urn:air:sdxl:checkpoint:civitai", "civitai"),
        ("urn:air:model:huggingface:stabilityai/sdxl-vae", "hf"),
        ("https://host/a.safetensors", "https"),
        (f"https://host/a.safetensors#sha256={HASH[1:]}", "https"),
        (f"https:///a.safetensors#sha256={HASH}", "https"),
        (f"https://host:0/a.safetensors#sha256={HASH}", "https"),
        (f"https://[::1/a.safetensors#sha256={HASH}", "https"),
        (f"http://example.org/a.safetensors#sha256={HASH}", "https"),
        (f"http://127.0.0.1.example.org/a.safetensors#sha256={HASH}", "https"),
        ("file:model.safetensors", "file"),
        ("file:", "file"),
        ("file://server/model.safetensors", "file"),
        ("file:/models/../../etc/passwd", "file"),
        ("file:///models/%2e%2e/secret", "file"),
    ],
)
def test_an_error_says_how_it_is_written(text: str, scheme: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(text)
    assert EXPECTED[scheme] in caught.value.message


@pytest.mark.parametrize("text", ["", "hf", "277058", "model.safetensors", r"C:\models\a.safetensors", "ü:x"])
def test_what_is_no_reference_is_answered_by_all_ways(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(text)
    assert all(way in caught.value.message for way in EXPECTED.values())


@pytest.mark.parametrize(
    ("pasted", "advice"),
    [
        ("https://huggingface.co/org/repo", "hf:org/repo."),
        ("https://huggingface.co/org/repo/tree/main", "hf:org/repo."),
        ("https://huggingface.co/org/repo/tree/dev", "hf:org/repo@dev."),
        ("https://huggingface.co/org/repo/blob/main/a/b%20c.safetensors", "hf:org/repo:a/b c.safetensors."),
        ("https://huggingface.co/org/repo/resolve/v1/b.safetensors?download=true", "hf:org/repo@v1:b.safetensors."),
        ("huggingface.co/org/repo", "hf:org/repo."),
        ("https://huggingface.co/models?search=sdxl", "hf:org/repo."),
        ("hf://org/repo", "hf:org/repo,"),
        ("org/repo", "hf:org/repo."),
        ("org/repo@v1:a.safetensors", "hf:org/repo@v1:a.safetensors."),
        ("https://civitai.com/models/277058", "civitai:277058."),
        ("https://civitai.com/models/277058/epic-xl?modelVersionId=1920523", "civitai:277058@1920523."),
        ("civitai.red/models/277058?modelVersionId=1920523&x=1", "civitai:277058@1920523."),
        ("https://civitai.com/api/download/models/1920523?type=Model", "civitai:model@1920523,"),
        ("https://civitai.com/user/someone", "civitai:model@version,"),
        ("/models/a.safetensors", "file:/models/a.safetensors."),
        ("~/models", "file: and the absolute path, as file:/data/model.safetensors."),
    ],
)
def test_who_pastes_an_address_is_told_the_reference(pasted: str, advice: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(pasted)
    assert f"Write that source as {advice}" in caught.value.message


@pytest.mark.parametrize(
    "address",
    [
        "https://user:s3cret@host/a.safetensors",
        "https://host/a.safetensors?token=s3cret",
        "https://host/a.safetensors?X-Amz-Signature=s3cret&X-Amz-Expires=3",
        "https://host/a.safetensors?api_key=s3cret",
        "https://host/a.safetensors?sig=s3cret",
        "s3cret",
        "hf_s3cret/repo/x",
    ],
)
def test_a_secret_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(f"{address}#sha256={HASH}")
    assert "s3cret" not in f"{caught.value.message} {caught.value.details}"


def test_a_reference_has_a_length() -> None:
    assert parse("mirror:".ljust(LONGEST_REFERENCE, "x"))
    with pytest.raises(InvalidRequest, match="2048"):
        parse("mirror:".ljust(LONGEST_REFERENCE + 1, "x"))


@given(st.text(max_size=100) | st.from_regex(r"(hf|civitai|https|file|urn:air):.{0,80}", fullmatch=True))
def test_nothing_is_understood_in_two_ways(text: str) -> None:
    reference = None
    with contextlib.suppress(InvalidRequest):
        reference = parse(text)
    assert reference is None or parse(str(reference)) == reference


_NAME = st.from_regex(r"[A-Za-z0-9]([._]?[A-Za-z0-9_]){0,20}", fullmatch=True).filter(lambda name: "_git" not in name)
_REVISION = st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9/_-]{0,30}", fullmatch=True)
_FILE = st.none() | st.from_regex(r"([A-Za-z0-9@: ]{0,10}[a-z]/)?[A-Za-z0-9@]{1,20}\.safetensors", fullmatch=True)


@given(owner=_NAME, name=_NAME, revision=_REVISION, file=_FILE)
def test_every_repository_can_be_written(owner: str, name: str, revision: str | None, file: str | None) -> None:
    text = str(HuggingFaceReference(f"{owner}/{name}", revision, file))
    try:
        assert str(parse(text)) == text
    except InvalidRequest:
        assert name.endswith(".git") or (file and (":" in file or file.startswith(" ") or " /" in file))


@given(st.integers(1, 10**17), st.none() | st.integers(1, 10**17), st.sampled_from(["checkpoint", "lora", "vae"]))
def test_an_air_and_its_numbers_are_the_same(model: int, version: int | None, kind: str) -> None:
    numbers = f"{model}@{version}" if version else f"{model}"
    assert parse(f"urn:air:sdxl:{kind}:civitai:{numbers}") == parse(f"civitai:{numbers}")
