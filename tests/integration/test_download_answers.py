"""What servers answer in place of a file: told with a code and what to do, tried again where that may help."""

import email.utils
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamforge.errors import DownloadCorrupt, SourceForbidden, SourceNotFound, SourceUnavailable
from dreamforge.models.download.limits import Retries
from dreamforge.models.remote import Location
from tests.hubs.file_server import FileServer
from tests.hubs.hosting import LOGIN_PAGE, NO_FAULT, Fault, HostedFile, redirect
from tests.integration.downloads import Desk, EndedError, downloader, noise, remote

SIZE = 300_000
JSON_ERROR = Fault(status=200, headers={"Content-Type": "application/json"}, body=b'{"error":"Unauthorized"}')


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server:
        yield server


@pytest.fixture
def file(server: FileServer) -> HostedFile:
    return server.add("model.safetensors", noise(SIZE))


@pytest.fixture
def desk(file: HostedFile, tmp_path: Path) -> Desk:
    return Desk(file, tmp_path / "file.part")


@pytest.mark.parametrize("status", [401, 403])
def test_who_is_refused_is_told_so_after_a_fresh_address(desk: Desk, status: int) -> None:
    desk.file.fault = Fault(status=status, headers={"X-Error-Message": "Access to model org/repo is restricted."})
    with pytest.raises(SourceForbidden, match="token") as raised:
        desk.fetch()
    assert raised.value.details["status"] == status
    assert "Access to model org/repo is restricted" in raised.value.message
    assert desk.located == 2
    assert len(desk.file.requests) == 2


@pytest.mark.parametrize("status", [404, 410])
def test_what_is_not_there_is_not_found(desk: Desk, status: int) -> None:
    desk.file.fault = Fault(status=status)
    with pytest.raises(SourceNotFound, match=r"model\.safetensors"):
        desk.fetch()
    assert len(desk.file.requests) == 2


@pytest.mark.parametrize("page", [LOGIN_PAGE, JSON_ERROR])
def test_a_page_is_no_model(desk: Desk, page: Fault) -> None:
    desk.file.fault = page
    with pytest.raises(SourceForbidden, match="page") as raised:
        desk.fetch(file=remote(desk.file, size=None, sha256=None))
    assert raised.value.details["reason"] == "page"
    assert desk.is_clean


def test_a_page_that_says_it_is_a_file_is_found_by_its_size(desk: Desk) -> None:
    desk.file.fault = Fault(status=200, headers={"Content-Type": "binary/octet-stream"}, body=b'{"error":"no"}')
    with pytest.raises(DownloadCorrupt, match=r"14 bytes, and its source said 300,000"):
        desk.fetch()
    assert desk.is_clean


def test_a_page_of_the_very_size_is_found_by_the_hash(desk: Desk) -> None:
    desk.file.fault = Fault(status=200, headers={"Content-Type": "binary/octet-stream"}, body=b"x" * SIZE)
    with pytest.raises(DownloadCorrupt, match="hash"):
        desk.fetch()
    assert desk.is_clean


def test_a_json_file_may_be_json(server: FileServer, tmp_path: Path) -> None:
    file = server.add("vae/config.json", b"{}")
    file.content_type = "application/json; charset=utf-8"
    assert Desk(file, tmp_path / "part").fetch().size == 2


def test_an_address_that_expires_is_asked_for_again(desk: Desk, server: FileServer) -> None:
    desk.file.then(Fault(cut_after=SIZE // 2))
    server.expire()

    def expire() -> None:
        if len(desk.file.requests) == 1:
            server.expire()
            desk.check = lambda: None

    desk.check = expire
    assert desk.fetch().sha256 == desk.file.sha256
    assert [asked.status for asked in desk.file.requests] == [206, 403, 206]
    assert desk.located == 2
    assert desk.file.requests[-1].sent == SIZE - SIZE // 2


def test_it_may_expire_again_and_again(desk: Desk, server: FileServer) -> None:
    desk.file.fault = Fault(cut_after=SIZE // 8)
    server.expire()
    seen = [0]

    def expire() -> None:
        answered = sum(asked.status == 206 for asked in desk.file.requests)
        if answered > seen[0]:
            seen[0] = answered
            server.expire()

    desk.check = expire
    assert desk.fetch().sha256 == desk.file.sha256
    assert desk.located > 6


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_trouble_that_passes_is_waited_for(desk: Desk, status: int) -> None:
    desk.file.then(Fault(status=status), Fault(cut_after=SIZE // 2), Fault(status=status), Fault(status=status))
    assert desk.fetch().sha256 == desk.file.sha256


@pytest.mark.parametrize("status", [429, 503])
def test_trouble_that_does_not_pass_is_told(desk: Desk, status: int) -> None:
    desk.file.fault = Fault(status=status)
    with pytest.raises(SourceUnavailable, match=f"status {status}") as raised:
        desk.fetch()
    assert raised.value.details == {"host": "127.0.0.1", "status": status}
    assert len(desk.file.requests) == 4


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "1"},
        {"Retry-After": lambda: email.utils.formatdate(time.time() + 2, usegmt=True)},
        {"RateLimit": '"resolvers";r=0;t=1'},
    ],
)
def test_who_says_when_to_come_back_is_heeded(desk: Desk, headers: dict[str, object]) -> None:
    told = {name: value() if callable(value) else str(value) for name, value in headers.items()}
    desk.file.then(Fault(status=429, headers={name: str(value) for name, value in told.items()}))
    began = time.monotonic()
    assert desk.fetch().sha256 == desk.file.sha256
    # A date is of whole seconds.
    assert time.monotonic() - began > 0.8


def test_who_says_to_come_back_tomorrow_is_not_waited_for(desk: Desk) -> None:
    desk.file.fault = Fault(status=429, headers={"Retry-After": "86400"})
    with pytest.raises(SourceUnavailable) as raised:
        desk.fetch()
    assert raised.value.details["retry_after"] >= 21600
    assert len(desk.file.requests) == 1


@pytest.mark.parametrize("text", ["soon", "-5", "Thu, 99 Nov 2026"])
def test_a_time_that_makes_no_sense_is_none(desk: Desk, text: str) -> None:
    desk.file.then(Fault(status=503, headers={"Retry-After": text}))
    assert desk.fetch().sha256 == desk.file.sha256


def test_a_wait_ends_when_it_is_told_to(desk: Desk) -> None:
    desk.file.fault = Fault(status=503, headers={"Retry-After": "60"})
    began = time.monotonic()

    def check() -> None:
        if desk.file.requests and time.monotonic() - began > 0.5:
            raise EndedError

    desk.check = check
    with pytest.raises(EndedError):
        desk.fetch()
    assert time.monotonic() - began < 10


def test_nobody_there_is_told_after_a_few_tries(desk: Desk, server: FileServer) -> None:
    with FileServer() as other:
        url = other.url("model.safetensors")
    del server
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1 does not take connections"):
        downloader().fetch(remote(desk.file), lambda: Location(url), desk.part)


def test_a_name_that_nobody_has_is_told(desk: Desk) -> None:
    where = Location("https://no-such-host.invalid/model.safetensors")
    with pytest.raises(SourceUnavailable, match=r"no-such-host\.invalid"):
        downloader(retries=Retries(most=2, first_pause=0.01)).fetch(remote(desk.file), lambda: where, desk.part)


def test_a_source_that_is_away_is_asked_again(desk: Desk) -> None:
    asked: list[int] = []

    def locate() -> Location:
        asked.append(1)
        if len(asked) < 3:
            raise SourceUnavailable
        return Location(desk.file.url)

    assert downloader().fetch(remote(desk.file), locate, desk.part).sha256 == desk.file.sha256


def test_what_a_source_refuses_is_told_as_it_says_it(desk: Desk) -> None:
    def locate() -> Location:
        raise SourceForbidden("Accept the licence.")

    with pytest.raises(SourceForbidden, match="Accept the licence"):
        downloader().fetch(remote(desk.file), locate, desk.part)


@pytest.mark.parametrize("headers", [{"Content-Range": ""}, {"Content-Range": "bytes 5-9/10"}, {"Content-Range": "x"}])
def test_a_part_that_is_another_is_not_taken(desk: Desk, headers: dict[str, str]) -> None:
    desk.file.then(Fault(status=206, headers=headers, body=b"abcde"))
    assert desk.fetch().sha256 == desk.file.sha256


def test_a_shifted_part_is_not_taken(desk: Desk) -> None:
    desk.file.then(Fault(cut_after=SIZE // 2), Fault(range_shift=-3), Fault(range_shift=3))
    assert desk.fetch().sha256 == desk.file.sha256
    desk.file.fault = Fault(range_shift=-3)
    desk.part.unlink()
    desk.file.then(Fault(cut_after=SIZE // 2))
    with pytest.raises(DownloadCorrupt, match="another part"):
        desk.fetch()


@pytest.mark.parametrize("more", [-1, 1, 1000])
@pytest.mark.parametrize("ignores_range", [True, False])
def test_a_lying_length_is_noticed(desk: Desk, more: int, ignores_range: bool) -> None:
    desk.file.fault = Fault(adds_to_length=more, ignores_range=ignores_range)
    with pytest.raises(DownloadCorrupt):
        desk.fetch()
    assert desk.is_clean
    desk.file.fault = NO_FAULT
    assert desk.fetch().sha256 == desk.file.sha256


@pytest.mark.parametrize("more", [-1, 1, 1000])
def test_a_lying_length_of_a_file_of_unknown_size_is_found_by_the_hash(desk: Desk, more: int) -> None:
    desk.file.then(Fault(adds_to_length=more, ignores_range=True))
    try:
        assert desk.fetch(file=remote(desk.file, size=None)).sha256 == desk.file.sha256
    except DownloadCorrupt:
        assert more < 0
        assert desk.is_clean


@pytest.mark.parametrize("connections", [1, 3])
def test_a_part_with_the_status_of_the_whole_is_a_part(desk: Desk, connections: int) -> None:
    """As the embedded object store sends it."""
    desk.file.fault = Fault(says_200=True)
    desk.file.then(Fault(says_200=True, cut_after=SIZE // 10), Fault(says_200=True, cut_after=SIZE // 10))
    assert desk.fetch(downloader(connections=connections)).sha256 == desk.file.sha256
    assert desk.file.bytes_sent == SIZE


def test_what_is_packed_is_not_taken(desk: Desk) -> None:
    desk.file.then(Fault(gzips=True))
    assert desk.fetch().sha256 == desk.file.sha256
    desk.part.unlink()
    desk.file.fault = Fault(gzips=True)
    with pytest.raises(DownloadCorrupt, match="packed"):
        desk.fetch()


def test_416_for_a_part_that_is_there_begins_afresh(desk: Desk) -> None:
    desk.file.then(Fault(cut_after=SIZE // 2), Fault(status=416), Fault(status=412))
    assert desk.fetch().sha256 == desk.file.sha256
    assert desk.file.requests[-1].sent == SIZE


def test_chunks_without_a_length_are_taken(desk: Desk) -> None:
    desk.file.fault = Fault(has_no_length=True, ignores_range=True)
    assert desk.fetch(file=remote(desk.file, size=None)).sha256 == desk.file.sha256
    desk.part.unlink()
    desk.file.then(Fault(has_no_length=True, ignores_range=True, cut_after=SIZE // 2))
    assert desk.fetch(file=remote(desk.file, size=None)).sha256 == desk.file.sha256


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1])
def test_more_or_less_than_was_told_is_noticed_without_a_length_too(desk: Desk, size: int) -> None:
    desk.file.fault = Fault(has_no_length=True, ignores_range=True)
    with pytest.raises((DownloadCorrupt, SourceUnavailable)):
        desk.fetch(file=remote(desk.file, size=size, sha256=None))


@pytest.mark.parametrize("status", [201, 204, 300, 304])
def test_other_answers_are_no_files(desk: Desk, status: int) -> None:
    desk.file.fault = Fault(status=status)
    with pytest.raises(DownloadCorrupt, match=f"status {status}"):
        desk.fetch()


def test_redirects_end(desk: Desk, server: FileServer) -> None:
    desk.file.fault = redirect(server.url(desk.file.path))
    with pytest.raises(DownloadCorrupt, match="more than 5 times"):
        desk.fetch(downloader(retries=Retries(most=1)))
    assert len(desk.file.requests) == 6


@pytest.mark.parametrize("target", ["", "http://[", "http://127.0.0.1:99999999/"])
def test_a_redirect_to_nowhere_is_told(desk: Desk, target: str) -> None:
    desk.file.fault = redirect(target)
    with pytest.raises((DownloadCorrupt, SourceForbidden, SourceUnavailable)):
        desk.fetch()
