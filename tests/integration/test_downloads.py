"""A download ends with the very file, whatever is between: broken connections, changes, silence, interruptions."""

import hashlib
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamforge.errors import DownloadCorrupt, SourceUnavailable
from dreamforge.models.download.downloader import state_of
from dreamforge.models.download.limits import Limits, Retries
from dreamforge.models.download.transport import Transport
from tests.hubs.file_server import FileServer
from tests.hubs.hosting import Fault, HostedFile
from tests.integration.downloads import PIECE, Desk, EndedError, downloader, ending_after, is_right, noise, remote

SIZE = 1_500_001


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server:
        yield server


@pytest.fixture
def file(server: FileServer) -> HostedFile:
    return server.add("unet/model.safetensors", noise(SIZE))


@pytest.fixture
def desk(file: HostedFile, tmp_path: Path) -> Desk:
    return Desk(file, tmp_path / "file.part")


def test_a_file_is_fetched_once_and_told_of(desk: Desk) -> None:
    assert is_right(desk, desk.fetch())
    assert desk.file.bytes_sent == SIZE
    assert desk.told[-1] == (SIZE, SIZE)
    asked = desk.file.requests[0]
    assert asked.headers["User-Agent"].startswith("dreamforge/")
    assert asked.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("connections", [2, 4])
def test_several_connections_bring_parts_of_one_file(desk: Desk, connections: int) -> None:
    desk.file.fault = Fault(drip=0.002, drip_bytes=16 * 1024)
    assert is_right(desk, desk.fetch(downloader(connections=connections)))
    assert desk.file.bytes_sent == SIZE
    assert len(desk.file.requests) > connections
    assert all(asked.status == 206 for asked in desk.file.requests)


def test_many_files_at_once_share_the_connections(server: FileServer, tmp_path: Path) -> None:
    files = [server.add(f"{number}.bin", noise(400_000, number)) for number in range(6)]
    desks = [Desk(file, tmp_path / f"{number}.part") for number, file in enumerate(files)]
    one = downloader(connections=3)
    threads = [threading.Thread(target=desk.fetch, args=(one,)) for desk in desks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for desk in desks:
        assert desk.part.read_bytes() == desk.file.body


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1])
@pytest.mark.parametrize("told", [True, False])
def test_small_files_are_files_too(server: FileServer, tmp_path: Path, size: int, told: bool) -> None:
    desk = Desk(server.add("small.json", noise(size)), tmp_path / "part")
    known = remote(desk.file, size=size if told else None, sha256=desk.file.sha256 if told else None)
    assert is_right(desk, desk.fetch(downloader(connections=2), known))


def test_a_blob_of_git_is_verified_by_its_own_hash(desk: Desk) -> None:
    known = remote(desk.file, sha256=None, git_sha1=desk.file.git_sha1)
    assert is_right(desk, desk.fetch(file=known))
    with pytest.raises(DownloadCorrupt, match="hash"):
        desk.fetch(file=remote(desk.file, sha256=None, git_sha1="0" * 40))
    assert desk.is_clean


@pytest.mark.parametrize("connections", [1, 4])
def test_fifty_cuts_at_random_bytes_cost_nothing_twice(desk: Desk, connections: int) -> None:
    chance = random.Random(7)  # noqa: S311 - the same each time
    # What an answer of this size can lose.
    most = 25_000
    desk.file.then(*(Fault(cut_after=chance.randrange(most), resets=chance.random() < 0.3) for _ in range(50)))
    assert is_right(desk, desk.fetch(downloader(connections=connections, retries=Retries(most=50, first_pause=0.0))))
    assert len([asked for asked in desk.file.requests if asked.sent < most]) >= 50
    # A reset takes along what was on its way.
    assert SIZE <= desk.file.bytes_sent <= SIZE + 50 * most // 3


@pytest.mark.parametrize("connections", [1, 3])
def test_a_file_is_the_same_though_its_process_stops_again_and_again(desk: Desk, connections: int) -> None:
    chance = random.Random(3)  # noqa: S311 - the same each time
    desk.file.fault = Fault(drip=0.0005, drip_bytes=8 * 1024)
    stopped = 0
    while True:
        desk.check = ending_after(chance.randrange(5, 60))
        try:
            found = desk.fetch(downloader(connections=connections))
            break
        except EndedError:
            stopped += 1
            assert stopped < 200
    assert stopped > 3
    assert is_right(desk, found)
    # What was stopped had asked for more than it read.
    assert desk.part.stat().st_size == SIZE


def test_what_is_there_is_not_asked_for_again(desk: Desk) -> None:
    desk.file.then(Fault(cut_after=SIZE // 2))
    with pytest.raises(SourceUnavailable):
        desk.fetch(downloader(retries=Retries(most=1)))
    assert desk.has_state
    assert is_right(desk, desk.fetch())
    assert desk.file.bytes_sent == SIZE
    assert desk.file.requests[-1].headers["If-Range"] == desk.file.etag


def test_a_whole_file_that_was_not_renamed_is_not_asked_for(desk: Desk) -> None:
    desk.fetch()
    assert is_right(desk, desk.fetch())
    assert len(desk.file.requests) == 1


def test_of_what_has_the_size_alone_nothing_stays(desk: Desk) -> None:
    desk.part.write_bytes(noise(SIZE, seed=99))
    assert is_right(desk, desk.fetch())


def test_a_server_that_ignores_ranges_is_read_from_the_beginning(desk: Desk) -> None:
    desk.file.fault = Fault(ignores_range=True)
    desk.file.then(Fault(cut_after=SIZE // 2), Fault(ignores_range=True, cut_after=SIZE // 3))
    assert is_right(desk, desk.fetch(downloader(connections=4)))
    assert {asked.status for asked in desk.file.requests} == {206, 200}
    assert SIZE in {asked.sent for asked in desk.file.requests}


def test_a_server_that_never_gets_far_is_given_up(desk: Desk) -> None:
    desk.file.fault = Fault(ignores_range=True, cut_after=SIZE // 2)
    with pytest.raises(SourceUnavailable):
        desk.fetch()
    assert len(desk.file.requests) == 4


@pytest.mark.parametrize("connections", [1, 3])
def test_a_file_that_changed_between_two_processes_is_fetched_anew(desk: Desk, connections: int) -> None:
    desk.file.then(Fault(cut_after=SIZE // 2))
    with pytest.raises(SourceUnavailable):
        desk.fetch(downloader(retries=Retries(most=1)), remote(desk.file, sha256=None))
    assert desk.has_state
    desk.file.change(noise(SIZE, seed=2))
    assert is_right(desk, desk.fetch(downloader(connections=connections), remote(desk.file, sha256=None)))


def test_a_helper_brings_nothing_of_the_old_file_into_the_new(desk: Desk) -> None:
    """Its answer began before the change, and goes on for long after it."""
    desk.file.fault = Fault(drip=0.005, drip_bytes=16 * 1024)
    leading = Fault(drip=0.05, drip_bytes=16 * 1024, cut_after=48 * 1024)
    helping = Fault(drip=0.02, drip_bytes=2 * 1024)
    desk.file.then(leading, helping)
    known = remote(desk.file, sha256=None)
    changed = noise(SIZE, seed=2)

    def change_once() -> None:
        if len(desk.file.requests) == 1 and desk.file.body != changed:
            desk.file.change(changed)

    desk.check = change_once
    assert is_right(desk, desk.fetch(downloader(connections=2), known))


@pytest.mark.parametrize("size", [SIZE, SIZE // 2, SIZE // 4, SIZE + 1])
def test_a_file_that_changes_while_it_is_downloaded_is_fetched_anew(desk: Desk, size: int) -> None:
    desk.file.then(Fault(cut_after=SIZE // 2))
    known = remote(desk.file, sha256=None, size=None)
    changed = noise(size, seed=2)

    def change_once() -> None:
        if len(desk.file.requests) == 1 and desk.file.body != changed:
            desk.file.change(changed)

    desk.check = change_once
    assert is_right(desk, desk.fetch(downloader(connections=2), known))


def test_a_change_that_no_mark_tells_of_is_found_by_the_hash(desk: Desk) -> None:
    desk.file.etag = desk.file.last_modified = None
    desk.file.then(Fault(cut_after=SIZE // 2))
    wanted = noise(SIZE, seed=2)
    known = remote(desk.file, sha256=hashlib.sha256(wanted).hexdigest())
    with pytest.raises(SourceUnavailable):
        desk.fetch(downloader(retries=Retries(most=1)), known)
    desk.file.body = wanted
    assert is_right(desk, desk.fetch(file=known))


def test_parts_without_mark_and_hash_are_never_put_together(desk: Desk) -> None:
    desk.file.etag = desk.file.last_modified = None
    desk.file.then(Fault(cut_after=SIZE // 2))
    assert is_right(desk, desk.fetch(downloader(connections=3), remote(desk.file, sha256=None)))
    assert desk.file.requests[-1].sent == SIZE


def test_a_file_that_never_stays_one_is_given_up(desk: Desk) -> None:
    desk.file.fault = Fault(cut_after=1000)
    changes = iter(range(1000))

    def change() -> None:
        desk.file.change(noise(SIZE, seed=next(changes)))

    desk.check = change
    with pytest.raises(DownloadCorrupt, match="changes at its source"):
        desk.fetch(downloader(retries=Retries(most=50, first_pause=0.0)), remote(desk.file, sha256=None))
    assert desk.is_clean


def test_servers_behind_one_name_may_each_have_their_own_mark(desk: Desk) -> None:
    desk.file.fault = Fault(cut_after=SIZE // 5)
    marks = iter(range(1000))

    def other() -> None:
        desk.file.etag = f'"{next(marks)}"'

    desk.check = other
    assert is_right(desk, desk.fetch())


def test_a_wrong_hash_is_said_and_nothing_is_kept(desk: Desk) -> None:
    desk.file.fault = Fault(flips=SIZE - 3)
    with pytest.raises(DownloadCorrupt, match="hash is another") as raised:
        desk.fetch()
    assert raised.value.details == {"file": desk.file.path, "reason": "hash"}
    assert desk.is_clean
    assert desk.file.bytes_sent == SIZE


@pytest.mark.parametrize("nonsense", [b"", b"{", b"[]", b'{"size":1,"etag":null,"last_modified":null,"done":[[5,2]]}'])
def test_a_state_that_makes_no_sense_is_none(desk: Desk, nonsense: bytes) -> None:
    desk.part.write_bytes(b"x" * 1000)
    state_of(desk.part).write_bytes(nonsense)
    assert is_right(desk, desk.fetch())


def test_a_state_that_says_more_than_is_there_is_not_believed(desk: Desk) -> None:
    desk.file.then(Fault(cut_after=SIZE // 2))
    with pytest.raises(SourceUnavailable):
        desk.fetch(downloader(retries=Retries(most=1)))
    os.truncate(desk.part, 1000)
    assert is_right(desk, desk.fetch())


def test_what_was_longer_before_is_as_long_as_the_file(desk: Desk) -> None:
    desk.file.then(Fault(cut_after=SIZE // 2))
    with pytest.raises(SourceUnavailable):
        desk.fetch(downloader(retries=Retries(most=1)))
    os.truncate(desk.part, 2 * SIZE)
    assert is_right(desk, desk.fetch())


def test_a_link_in_the_place_of_the_part_is_not_followed(desk: Desk, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    desk.part.symlink_to(victim)
    with pytest.raises(Exception, match="cannot be written"):
        desk.fetch()
    assert victim.read_bytes() == b"precious"


def test_silence_is_broken_off_and_the_rest_comes_by_another_connection(desk: Desk) -> None:
    desk.file.then(Fault(silent_after=SIZE // 2))
    assert is_right(desk, desk.fetch(downloader(stall_seconds=0.5)))
    assert desk.file.bytes_sent == SIZE


@pytest.mark.parametrize("fault", [Fault(silent_after=100), Fault(drip=0.05, drip_bytes=2)])
def test_who_stays_silent_or_only_drips_is_given_up(desk: Desk, fault: Fault) -> None:
    desk.file.fault = fault
    with pytest.raises(SourceUnavailable, match="too slowly") as raised:
        desk.fetch(downloader(stall_seconds=0.3))
    assert raised.value.details["reason"] == "stalled"
    # What has come is of use.
    assert desk.has_state


def test_a_helper_in_trouble_leaves_its_part_to_others(desk: Desk) -> None:
    desk.file.fault = Fault(drip=0.001, drip_bytes=16 * 1024)
    desk.file.then(desk.file.fault, Fault(status=500), Fault(silent_after=10), Fault(status=403))
    assert is_right(desk, desk.fetch(downloader(connections=4, stall_seconds=0.5)))


@pytest.mark.parametrize("connections", [1, 2])
def test_an_answer_whose_head_never_ends_is_left(desk: Desk, connections: int) -> None:
    """Each byte of it comes in time; what is there of the file stays."""
    transport = Transport(proxies={}, connect_seconds=0.2, read_seconds=0.2)
    desk.file.then(Fault(cut_after=SIZE // 2))
    desk.file.fault = Fault(endless_head=True)
    with pytest.raises(SourceUnavailable, match="too slowly") as raised:
        desk.fetch(downloader(connections=connections, transport=transport))
    assert raised.value.details["reason"] == "stalled"
    assert desk.has_state
    desk.file.fault = Fault()
    assert is_right(desk, desk.fetch())


def test_what_is_there_survives_answers_that_make_no_sense(desk: Desk) -> None:
    desk.file.then(Fault(cut_after=SIZE // 2), *(5 * [Fault(range_shift=1)]))
    with pytest.raises(DownloadCorrupt, match="another part"):
        desk.fetch()
    assert desk.has_state
    desk.file.fault = Fault()
    assert is_right(desk, desk.fetch())
    assert desk.file.requests[-1].headers["Range"].startswith(f"bytes={SIZE // 2}-")


def test_a_file_without_a_size_ends_where_it_may_end(desk: Desk) -> None:
    desk.file.fault = Fault(has_no_length=True, ignores_range=True)
    known = remote(desk.file, size=None, sha256=None)
    with pytest.raises(DownloadCorrupt, match="longer than 1,000,000"):
        desk.fetch(downloader(limits=Limits(spare=0, most=1_000_000, piece=PIECE)), known)
    assert desk.is_clean
    assert is_right(desk, desk.fetch(file=known))
    desk.file.fault = Fault()
    with pytest.raises(DownloadCorrupt, match="longer than 1,000,000"):
        desk.fetch(downloader(limits=Limits(spare=0, most=1_000_000, piece=PIECE)), remote(desk.file, size=None))
