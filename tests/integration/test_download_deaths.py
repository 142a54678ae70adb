"""Whenever the process that downloads a file is killed, the next one ends with the very file."""

import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamforge.models.download.downloader import state_of
from tests.hubs.file_server import FileServer
from tests.hubs.hosting import Fault, HostedFile
from tests.integration.download_child import Trap, order
from tests.integration.downloads import Desk, noise, remote
from tests.service import wait_for

SIZE = 1_000_003
SLOWLY = Fault(drip=0.002, drip_bytes=8 * 1024)
DIED = -signal.SIGKILL

PHASES = [
    Trap("route:Route.location"),
    Trap("transport:Transport.get"),
    Trap("transport:Transport.get", is_after=True),
    Trap("part_file:PartFile.write"),
    Trap("part_file:PartFile.write", is_after=True),
    Trap("part_file:PartFile.write", count=40),
    Trap("ledger:Ledger.wrote", count=40),
    Trap("part_file:PartFile.sync_data", count=3),
    Trap("partial:save", count=3),
    Trap("pathlib:Path.replace", count=3),
    Trap("partial:save", count=3, is_after=True),
    Trap("digest:Digest.advance", count=10),
    Trap("partial:Partial.is_right"),
    Trap("partial:Partial.conclude"),
    Trap("part_file:PartFile.sync"),
    Trap("part_file:PartFile.sync", is_after=True),
    Trap("pathlib:Path.unlink", is_after=True),
    Trap("partial:Partial.conclude", is_after=True),
    Trap("downloader:Downloader.fetch", is_after=True),
]


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server:
        yield server


@pytest.fixture
def file(server: FileServer) -> HostedFile:
    file = server.add("model.safetensors", noise(SIZE))
    file.fault = SLOWLY
    return file


@pytest.fixture
def desk(file: HostedFile, tmp_path: Path) -> Desk:
    return Desk(file, tmp_path / "file.part")


def _run(desk: Desk, trap: Trap | None, *, connections: int = 2) -> int:
    return subprocess.run(
        order(remote(desk.file), desk.part, connections=connections, trap=trap), check=False
    ).returncode


@pytest.mark.parametrize("phase", PHASES, ids=str)
def test_a_death_in_any_phase_and_again_costs_time_only(desk: Desk, phase: Trap) -> None:
    assert _run(desk, phase) == DIED
    # What is there already may leave no such phase.
    assert _run(desk, phase) in {DIED, 0}
    assert desk.fetch().sha256 == desk.file.sha256
    assert desk.part.read_bytes() == desk.file.body
    assert not desk.has_state


def test_what_was_there_at_a_death_is_not_asked_for_again(desk: Desk) -> None:
    assert _run(desk, Trap("partial:save", count=5, is_after=True)) == DIED
    assert state_of(desk.part).exists()
    wait_for(lambda: len(desk.file.requests) >= 2, what="the server to notice")
    before = desk.file.bytes_sent
    desk.fetch()
    assert desk.file.bytes_sent - before < SIZE
    assert _run(desk, None) == 0
    assert desk.part.read_bytes() == desk.file.body


@pytest.mark.parametrize("phase", [Trap("ledger:Ledger.begin_anew"), Trap("ledger:Ledger.begin_anew", is_after=True)])
def test_a_death_while_it_begins_anew_leaves_nothing_of_the_old_file(desk: Desk, phase: Trap) -> None:
    assert _run(desk, Trap("partial:save", count=5, is_after=True)) == DIED
    assert state_of(desk.part).exists()
    desk.file.change(noise(SIZE, seed=2))
    assert _run(desk, phase) == DIED
    assert not state_of(desk.part).exists()
    assert desk.fetch(file=remote(desk.file, sha256=None)).sha256 == desk.file.sha256


@pytest.mark.parametrize("connections", [1, 4])
def test_deaths_at_any_moment_cost_time_only(desk: Desk, connections: int) -> None:
    chance = random.Random(5)  # noqa: S311 - the same each time
    for _ in range(6):
        before = desk.part.stat().st_blocks if desk.part.exists() else 0
        with subprocess.Popen(order(remote(desk.file), desk.part, connections=connections, trap=None)) as process:
            more = chance.randrange(16, 300)
            wait_for(
                lambda process=process, enough=before + more: (
                    process.poll() is not None or (desk.part.exists() and desk.part.stat().st_blocks > enough)
                ),
                what="some of the file",
            )
            process.kill()
    assert desk.fetch().sha256 == desk.file.sha256
    assert desk.part.read_bytes() == desk.file.body
