"""Whom a download speaks to, and what it tells them."""

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamforge.errors import SourceForbidden, SourceUnavailable
from dreamforge.models.download.limits import Retries
from dreamforge.models.download.transport import Transport
from dreamforge.models.remote import Location
from tests.hubs.file_server import FileServer
from tests.hubs.hosting import Fault, HostedFile, redirect
from tests.integration.downloads import Desk, downloader, noise, remote

SIZE = 200_000
TOKEN = {"Authorization": "Bearer hf_secret", "Cookie": "session=secret"}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One for 127.0.0.1, and its key, made by OpenSSL."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*words.split(), *more], check=True, capture_output=True)
    return certificate, key


@pytest.fixture
def hub() -> Iterator[FileServer]:
    with FileServer() as server:
        yield server


@pytest.fixture
def storage() -> Iterator[FileServer]:
    """As Civitai's: 400 to any Authorization."""
    with FileServer(refuses_authorization=True) as server:
        yield server


@pytest.fixture
def secure(certificate: tuple[Path, Path]) -> Iterator[FileServer]:
    """One that speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with FileServer(tls=context) as server:
        yield server


@pytest.fixture
def trusting(certificate: tuple[Path, Path]) -> Transport:
    """One to which that certificate is good."""
    return Transport(proxies={}, tls=ssl.create_default_context(cafile=certificate[0]))


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "file.part"


def _hosted(server: FileServer) -> HostedFile:
    return server.add("model.safetensors", noise(SIZE))


def test_a_token_goes_to_its_own_host_and_no_further(hub: FileServer, storage: FileServer, part: Path) -> None:
    file, gate = _hosted(storage), hub.add("gate", b"")
    gate.fault = redirect(file.url, 307)
    file.then(Fault(cut_after=SIZE // 2))
    found = downloader(connections=2).fetch(remote(file), lambda: Location(gate.url, TOKEN), part)
    assert found.sha256 == file.sha256
    assert gate.requests[0].headers["Authorization"] == TOKEN["Authorization"]
    assert not [asked for asked in file.requests if {"Authorization", "Cookie"} & set(asked.headers)]
    # Where it led to is remembered.
    assert len(gate.requests) == 1


def test_a_token_does_not_come_back_by_a_detour(hub: FileServer, storage: FileServer, part: Path) -> None:
    file, gate, detour = _hosted(hub), hub.add("gate", b""), storage.add("detour", b"")
    gate.fault, detour.fault = redirect(detour.url), redirect(file.url)
    downloader().fetch(remote(file), lambda: Location(gate.url, TOKEN), part)
    assert "Authorization" not in file.requests[0].headers


def test_a_redirect_within_the_host_keeps_the_token(hub: FileServer, part: Path) -> None:
    file, gate = _hosted(hub), hub.add("gate", b"")
    gate.fault = redirect("/model.safetensors", 308)
    downloader().fetch(remote(file), lambda: Location(gate.url, TOKEN), part)
    assert file.requests[0].headers["Authorization"] == TOKEN["Authorization"]


def test_a_storage_address_that_expires_is_found_anew(hub: FileServer, storage: FileServer, part: Path) -> None:
    file, gate = _hosted(storage), hub.add("gate", b"")
    storage.expire()
    gate.then(redirect(file.url))
    file.then(Fault(cut_after=SIZE // 2))
    has_expired = False

    def check() -> None:
        nonlocal has_expired
        if file.requests and not has_expired:
            has_expired = True
            storage.expire()
            gate.fault = redirect(file.url)

    found = downloader().fetch(remote(file), lambda: Location(gate.url, TOKEN), part, check=check)
    assert found.sha256 == file.sha256
    assert file.bytes_sent == SIZE + len(b"<Error><Code>AccessDenied</Code></Error>")


def test_https_is_spoken(secure: FileServer, trusting: Transport, part: Path) -> None:
    file = _hosted(secure)
    file.then(Fault(cut_after=SIZE // 3), Fault(cut_after=SIZE // 3, resets=True))
    by = downloader(connections=2, transport=trusting)
    assert by.fetch(remote(file), lambda: Location(file.url), part).sha256 == file.sha256


def test_https_that_falls_silent_is_broken_off(secure: FileServer, trusting: Transport, part: Path) -> None:
    file = _hosted(secure)
    file.then(Fault(silent_after=SIZE // 2))
    by = downloader(stall_seconds=0.5, transport=trusting)
    assert by.fetch(remote(file), lambda: Location(file.url), part).sha256 == file.sha256


def test_a_certificate_that_nobody_trusts_is_told(secure: FileServer, part: Path) -> None:
    file = _hosted(secure)
    with pytest.raises(SourceUnavailable, match="certificate") as raised:
        downloader(retries=Retries(most=2, first_pause=0.0)).fetch(remote(file), lambda: Location(file.url), part)
    assert raised.value.details["reason"] == "tls"


def test_who_speaks_no_tls_is_told(hub: FileServer, trusting: Transport, part: Path) -> None:
    file = _hosted(hub)
    where = Location(file.url.replace("http:", "https:"))
    with pytest.raises(SourceUnavailable, match="TLS"):
        downloader(transport=trusting).fetch(remote(file), lambda: where, part)


def test_no_redirect_leads_from_https_to_http(
    secure: FileServer, hub: FileServer, trusting: Transport, part: Path
) -> None:
    file, gate = _hosted(hub), secure.add("gate", b"")
    gate.fault = redirect(file.url)
    with pytest.raises(SourceForbidden, match="from https to 'http'"):
        downloader(transport=trusting).fetch(remote(file), lambda: Location(gate.url), part)
    assert not file.requests


@pytest.mark.parametrize(
    "url",
    [
        "http://models.example/model.safetensors",
        "http://10.0.0.1/model.safetensors",
        "ftp://127.0.0.1/model.safetensors",
        "file:///etc/passwd",
        "https://user:password@models.example/model.safetensors",
        "https:///model.safetensors",
        "//models.example/model.safetensors",
        "model.safetensors",
        "https://[",
    ],
)
def test_only_https_is_asked(hub: FileServer, part: Path, url: str) -> None:
    file = _hosted(hub)
    with pytest.raises(SourceForbidden) as raised:
        downloader().fetch(remote(file), lambda: Location(url), part)
    assert "password" not in str(raised.value)
    gate = hub.add("gate", b"")
    gate.fault = redirect(url)
    # Some of these are another path on the same server.
    gate_path = gate.path
    if "://" in url and "[" not in url:
        with pytest.raises(SourceForbidden):
            downloader().fetch(remote(file), lambda: Location(hub.url(gate_path)), part)


def test_a_plain_host_that_was_named_may_be_asked(hub: FileServer, part: Path) -> None:
    """The object store's own endpoint: by this name it is not on loopback."""
    file = _hosted(hub)
    transport = Transport(proxies={}, plain_hosts=[f"0.0.0.0:{hub.port}"])
    where = Location(file.url.replace("127.0.0.1", "0.0.0.0"))  # noqa: S104 - connecting, not listening
    with pytest.raises(SourceForbidden):
        downloader().fetch(remote(file), lambda: where, part)
    assert downloader(transport=transport).fetch(remote(file), lambda: where, part).sha256 == file.sha256


def test_the_proxy_of_the_environment_is_used(hub: FileServer, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for a tunnel, and refuses; loopback and what `no_proxy` names are reached without it."""
    file = _hosted(hub)
    monkeypatch.setenv("https_proxy", hub.root)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "near.invalid")
    by = downloader(transport=Transport(), retries=Retries(most=1))
    with pytest.raises(SourceUnavailable):
        by.fetch(remote(file), lambda: Location("https://far.invalid/model.safetensors"), part)
    assert [asked.method for asked in hub.requests] == ["CONNECT"]
    with pytest.raises(SourceUnavailable, match="is not known here"):
        by.fetch(remote(file), lambda: Location("https://near.invalid/model.safetensors"), part)
    assert by.fetch(remote(file), lambda: Location(file.url), part).sha256 == file.sha256


def test_what_is_told_of_trouble_has_no_address_in_it(hub: FileServer, part: Path) -> None:
    file = _hosted(hub)
    for fault in (Fault(status=403), Fault(status=404), Fault(status=500), Fault(cut_after=0), Fault(flips=1)):
        file.fault = fault
        where = Location(f"{file.url}?X-Amz-Signature=secret", TOKEN)
        with pytest.raises(Exception, match=r"^[^?]*$") as raised:
            downloader(retries=Retries(most=1)).fetch(remote(file), lambda where=where: where, part)
        error: BaseException | None = raised.value
        while error is not None:
            assert "secret" not in f"{error!r} {error} {vars(error)}"
            error = error.__cause__


def test_a_server_that_does_not_know_head_is_never_asked_for_it(hub: FileServer, tmp_path: Path) -> None:
    desk = Desk(_hosted(hub), tmp_path / "part")
    desk.fetch()
    assert {asked.method for asked in hub.requests} == {"GET"}
