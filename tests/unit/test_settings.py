"""Settings from the environment."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from dreamforge import settings
from dreamforge.cli.configuration import load_settings
from dreamforge.embedded.trouble import StackError


def test_defaults_need_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings.inherited_environment():
        if name.startswith("DREAMFORGE_"):
            monkeypatch.delenv(name)
    loaded = settings.load()
    assert (loaded.host, loaded.port) == ("127.0.0.1", 8700)
    assert loaded.models_root == Path(".dreamforge/models").absolute()


def test_secrets_are_masked_when_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMFORGE_DATABASE_URL", "postgresql://u:hunter2@h/d")
    assert "hunter2" not in repr(settings.load())


@pytest.mark.parametrize(
    ("name", "value"),
    [("DREAMFORGE_PORT", "0"), ("DREAMFORGE_PORT", "http"), ("DREAMFORGE_REDIS_OUTAGE", "maybe")],
)
def test_a_wrong_value_names_its_setting(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        settings.load()
    assert name.removeprefix("DREAMFORGE_").lower() in str(caught.value)


@pytest.mark.parametrize(("lease", "renew", "is_taken"), [("30", "10", True), ("30", "11", False), ("inf", "1", False)])
def test_a_lease_is_renewed_twice_before_it_runs_out(
    monkeypatch: pytest.MonkeyPatch, lease: str, renew: str, is_taken: bool
) -> None:
    monkeypatch.setenv("DREAMFORGE_LEASE_SECONDS", lease)
    monkeypatch.setenv("DREAMFORGE_LEASE_RENEW_SECONDS", renew)
    if is_taken:
        assert settings.load().lease_renew_seconds == float(renew)
        return
    with pytest.raises(ValidationError, match=r"(?i)lease_"):
        settings.load()


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket",
        "s3cr3t:9000",
        "http://",
        "http://s3cr3t:9000/bucket",
        "http://s3cr3t//",
        "http://painter:s3cr3t@127.0.0.1",
        "http://s3cr3t?x=1",
        "http://s3cr3t#x",
        "http://s3cr3t:0",
        "http://s3cr3t:65536",
        "http://s3 cr3t",
        "http://s3cr3t\n",
        "http://[s3cr3t]",
        "http://[::1",
    ],
)
@pytest.mark.parametrize("name", ["DREAMFORGE_S3_ENDPOINT", "DREAMFORGE_S3_PUBLIC_ENDPOINT"])
def test_no_address_of_an_object_store_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str
) -> None:
    monkeypatch.setenv(name, url)
    monkeypatch.setenv("DREAMFORGE_S3_ACCESS_KEY", "painter")
    monkeypatch.setenv("DREAMFORGE_S3_SECRET_KEY", "s3cr3t")
    with pytest.raises(StackError) as refused:
        load_settings()
    assert str(refused.value).startswith(f"{name}: it is not like https://host:9000")
    assert "s3cr3t" not in f"{refused.value} {refused.value.__cause__}"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9000", "https://s3.example.org/", "http://[::1]:9000", "http://s_3"])
def test_an_address_of_an_object_store_is_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DREAMFORGE_S3_PUBLIC_ENDPOINT", url)
    assert settings.load().s3_public_endpoint == url


def test_an_endpoint_without_keys_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMFORGE_S3_ENDPOINT", "http://s3.example.org")
    monkeypatch.delenv("DREAMFORGE_S3_ACCESS_KEY", raising=False)
    with pytest.raises(ValidationError, match="DREAMFORGE_S3_ACCESS_KEY"):
        settings.load()


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, "http://127.0.0.1:8700"),
        ({"DREAMFORGE_HOST": "127.0.0.1", "DREAMFORGE_PORT": "9000"}, "http://127.0.0.1:9000"),
        ({"DREAMFORGE_HOST": "0.0.0.0"}, "http://127.0.0.1:8700"),  # noqa: S104 - only text here
        ({"DREAMFORGE_PORT": "1", "DREAMFORGE_URL": "https://forge.example.org/"}, "https://forge.example.org"),
    ],
)
def test_client_commands_find_the_service(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str) -> None:
    for name in ("DREAMFORGE_HOST", "DREAMFORGE_PORT", "DREAMFORGE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert settings.load().service_url == url


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("https://hf-mirror.example.org/", "https://hf-mirror.example.org"),
        ("https://mirror.example.org/api/huggingface/models", "https://mirror.example.org/api/huggingface/models"),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
    ],
)
def test_a_hub_s_mirror_may_be_a_folder_of_its_host(monkeypatch: pytest.MonkeyPatch, url: str, meant: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    assert settings.load().hf_endpoint == meant


@pytest.mark.parametrize(
    "url", ["hf.example.org", "https://u:s3cr3t@hf.example.org", "https://s3cr3t?x", "https://a//b"]
)
def test_no_address_of_a_hub_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    with pytest.raises(StackError) as refused:
        load_settings()
    assert str(refused.value).startswith("HF_ENDPOINT: it is not like https://host")
    assert "s3cr3t" not in f"{refused.value} {refused.value.__cause__}"


@pytest.mark.parametrize("name", ["HF_ENDPOINT", "DREAMFORGE_CIVITAI_ENDPOINT"])
def test_a_wrong_address_of_a_hub_is_told_by_the_variable_s_own_name(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "huggingface")
    with pytest.raises(StackError, match=f"^{name}: "):
        load_settings()
