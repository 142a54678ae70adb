"""Which host names are let in."""

import pytest
from pydantic import ValidationError

from dreamforge import settings
from dreamforge.api.hosts import is_allowed, names_of_this_machine

ALLOWED = ("localhost", "forge.example.org", "*.lan")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8700",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:8700",
        "192.168.1.20:8700",
        "[::1]",
        "[fe80::1]:8700",
        "forge.example.org",
        "Forge.Example.org:443",
        "gpu.lan",
        "a.b.lan:80",
    ],
)
def test_addresses_and_known_names_are_let_in(host: str) -> None:
    assert is_allowed(host, ALLOWED)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example.net",
        "localhost.evil.example.net",
        "127.0.0.1.evil.example.net",
        "forge.example.org.evil.net",
        "evilforge.example.org",
        "lan",
        "xlan",
        "user@localhost",
        "localhost/",
        "localhost:evil",
        "localhost evil",
        "127.0.0.1\x00",
        "[::1",
        "2130706433",
        "0x7f.1",
        "ⓛocalhost",
        "*",
    ],
)
def test_others_are_not(host: str) -> None:
    assert not is_allowed(host, ALLOWED)


def test_a_star_lets_everybody_in() -> None:
    assert is_allowed("evil.example.net", ("*",))


def test_the_machine_is_known_by_its_names() -> None:
    names = names_of_this_machine("Forge.example.org")
    assert {"localhost", "forge.example.org"} <= names
    assert any(name.endswith(".local") for name in names)


def test_names_come_with_commas_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMFORGE_ALLOWED_HOSTS", "forge.example.org, *.lan,")
    assert settings.load().allowed_hosts == ("forge.example.org", "*.lan")
    monkeypatch.setenv("DREAMFORGE_ALLOWED_HOSTS", "*")
    assert settings.load().allowed_hosts == ("*",)


@pytest.mark.parametrize("wrong", ["http://forge", "forge:8700", "a.*.b", "*forge", "a b"])
def test_what_is_no_name_is_refused(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("DREAMFORGE_ALLOWED_HOSTS", wrong)
    with pytest.raises(ValidationError, match="no host name"):
        settings.load()
