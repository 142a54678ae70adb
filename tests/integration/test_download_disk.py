"""Disks that are full, or fill while a file comes: told with the figures, and over as soon as there is room."""

import os
import resource
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dreamforge.errors import DiskFull, DownloadCorrupt, NodeError, SourceUnavailable
from dreamforge.models.download.downloader import state_of
from dreamforge.models.download.limits import MIB, Limits
from tests.faults import full_disk, small_disk
from tests.hubs.file_server import FileServer
from tests.hubs.hosting import NO_FAULT, Fault
from tests.integration.downloads import PIECE, Desk, downloader, noise, remote

SIZE = 2 * MIB


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server:
        yield server


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """One of 3 MiB."""
    with small_disk(tmp_path / "disk", mib=3) as disk:
        yield disk


@pytest.fixture
def desk(server: FileServer, disk: Path) -> Desk:
    return Desk(server.add("model.safetensors", noise(SIZE)), disk / "file.part")


def test_a_disk_without_room_is_told_before_anything_is_asked(desk: Desk, disk: Path) -> None:
    (disk / "other").write_bytes(bytes(2 * MIB))
    with pytest.raises(DiskFull, match="make room and repeat") as raised:
        desk.fetch()
    free = os.statvfs(disk)
    assert raised.value.details == {"needed_bytes": SIZE, "free_bytes": free.f_bavail * free.f_frsize, "spare_bytes": 0}
    assert not desk.file.requests
    (disk / "other").unlink()
    assert desk.fetch().sha256 == desk.file.sha256


def test_some_room_stays_free(desk: Desk) -> None:
    with pytest.raises(DiskFull):
        desk.fetch(downloader(limits=Limits(spare=2 * MIB, piece=PIECE)))
    assert not desk.file.requests
    desk.fetch(downloader(limits=Limits(spare=MIB // 2, piece=PIECE)))


def test_a_size_that_is_told_late_is_told_in_time(desk: Desk, disk: Path) -> None:
    (disk / "other").write_bytes(bytes(2 * MIB))
    with pytest.raises(DiskFull):
        desk.fetch(file=remote(desk.file, size=None))
    assert desk.is_clean


def test_what_is_there_already_needs_no_room(desk: Desk, disk: Path) -> None:
    desk.file.then(Fault(cut_after=SIZE // 2), *(4 * [Fault(status=503)]))
    with pytest.raises(Exception, match="503"):
        desk.fetch()
    (disk / "other").write_bytes(bytes(MIB * 3 // 4))
    assert desk.fetch().sha256 == desk.file.sha256


@pytest.mark.parametrize("connections", [1, 3])
def test_a_disk_that_fills_meanwhile_is_told_and_given_back(desk: Desk, disk: Path, connections: int) -> None:
    """The last byte may be the database's: what is there of the download goes."""
    desk.file.fault = Fault(drip=0.01, drip_bytes=16 * 1024)
    taken = False

    def fill() -> None:
        nonlocal taken
        if not taken and desk.part.exists() and desk.part.stat().st_size > SIZE // 4:
            taken = True
            filling.__enter__()

    filling = full_disk(disk)
    desk.check = fill
    with pytest.raises(DiskFull, match="make room and repeat") as raised:
        desk.fetch(downloader(connections=connections))
    assert raised.value.details == {"errno": "ENOSPC"}
    assert desk.is_clean
    filling.__exit__(None, None, None)
    desk.file.fault = NO_FAULT
    assert desk.fetch().sha256 == desk.file.sha256


def test_a_disk_that_others_fill_stops_the_download_before_it_is_full(desk: Desk, disk: Path) -> None:
    """Then what is there stays: it is not what the disk lacks."""
    desk.file.fault = Fault(drip=0.01, drip_bytes=4 * 1024)

    def fill() -> None:
        if desk.part.exists() and desk.part.stat().st_size > SIZE // 8:
            (disk / "other").write_bytes(bytes(MIB // 2 + MIB // 4))

    desk.check = fill
    with pytest.raises(DiskFull) as raised:
        desk.fetch(downloader(limits=Limits(spare=MIB // 2, piece=PIECE)))
    assert raised.value.details["needed_bytes"] > 0
    assert state_of(desk.part).exists()
    (disk / "other").unlink()
    desk.check = lambda: None
    desk.file.fault = NO_FAULT
    assert desk.fetch().sha256 == desk.file.sha256
    assert not desk.file.requests[-1].headers["Range"].startswith("bytes=0-")


@contextmanager
def _largest_file(size: int) -> Generator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_other_trouble_of_the_disk_is_told_as_such(server: FileServer, tmp_path: Path) -> None:
    desk = Desk(server.add("model.safetensors", noise(SIZE)), tmp_path / "part")
    with _largest_file(SIZE // 2), pytest.raises(NodeError, match="File too large") as raised:
        desk.fetch()
    assert raised.value.details == {"errno": "EFBIG"}
    with pytest.raises(NodeError) as raised:
        Desk(desk.file, tmp_path / "nowhere" / "part").fetch()
    assert raised.value.details == {"errno": "ENOENT"}


def test_whoever_cuts_the_file_off_is_noticed(server: FileServer, tmp_path: Path) -> None:
    desk = Desk(server.add("model.safetensors", noise(SIZE)), tmp_path / "part")
    desk.file.fault = Fault(silent_after=SIZE // 2)

    def cut() -> None:
        if desk.part.exists() and desk.part.stat().st_size >= SIZE // 2:
            os.truncate(desk.part, 0)

    desk.check = cut
    # Which one depends on how far the hash was.
    with pytest.raises((NodeError, DownloadCorrupt, SourceUnavailable)):
        desk.fetch(downloader(stall_seconds=0.3))
    desk.check = lambda: None
    desk.file.fault = NO_FAULT
    assert desk.fetch().sha256 == desk.file.sha256
