"""Whoever is stopped, or has lost the lease on a file, writes nothing more of it."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamforge.errors import LeaseLost, SourceUnavailable
from dreamforge.models.download.downloader import discard, state_of
from dreamforge.models.download.limits import Retries
from tests.hubs.file_server import FileServer
from tests.hubs.hosting import Fault
from tests.integration.downloads import PIECE, Desk, EndedError, downloader, ending_after, is_right, noise
from tests.service import wait_for

SIZE = 1_500_001


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with FileServer() as server:
        yield Desk(server.add("unet/model.safetensors", noise(SIZE)), tmp_path / "file.part")


@pytest.mark.parametrize("fault", [Fault(silent_after=10_000), Fault(holds_answer=True)])
def test_whoever_is_stopped_stops_at_once(desk: Desk, fault: Fault) -> None:
    """Though nothing comes, and the connection stays."""
    desk.file.fault = fault
    stopping = threading.Event()

    def check() -> None:
        if stopping.is_set():
            raise EndedError

    desk.check = check
    threading.Timer(0.5, stopping.set).start()
    began = time.monotonic()
    with pytest.raises(EndedError):
        desk.fetch(downloader(connections=2))
    assert time.monotonic() - began < 5
    desk.file.fault = Fault()
    desk.check = lambda: None
    assert is_right(desk, desk.fetch())


def test_after_a_stop_nothing_more_is_written(desk: Desk) -> None:
    desk.file.fault = Fault(drip=0.001, drip_bytes=16 * 1024)
    desk.check = ending_after(20)
    with pytest.raises(EndedError):
        desk.fetch(downloader(connections=4))
    before = desk.part.read_bytes(), state_of(desk.part).read_bytes()
    wait_for(lambda: not [one for one in threading.enumerate() if one.name in {"download", "hashing"}], what="an end")
    assert before == (desk.part.read_bytes(), state_of(desk.part).read_bytes())
    discard(desk.part)
    assert desk.is_clean


def test_whoever_has_lost_the_lease_leaves_everything_as_it_is(desk: Desk) -> None:
    """Another has it, and may be writing there."""
    desk.file.then(Fault(cut_after=SIZE // 2))
    with pytest.raises(SourceUnavailable):
        desk.fetch(downloader(retries=Retries(most=1)))
    before = state_of(desk.part).read_bytes()
    desk.file.fault = Fault(drip=0.001, drip_bytes=16 * 1024)

    def check() -> None:
        if desk.part.stat().st_size > SIZE // 2 + PIECE:
            raise LeaseLost

    desk.check = check
    with pytest.raises(LeaseLost):
        desk.fetch()
    assert state_of(desk.part).read_bytes() == before
    desk.check = lambda: None
    assert is_right(desk, desk.fetch())


@pytest.mark.parametrize("answer", [Fault(ignores_range=True), Fault(status=416), Fault(headers={"ETag": '"other"'})])
def test_an_answer_that_comes_after_the_lease_is_gone_empties_nothing(
    desk: Desk, answer: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder was frozen between question and answer. What it has open is by then a model that others draw with."""
    desk.file.then(Fault(cut_after=SIZE // 2))
    with pytest.raises(SourceUnavailable):
        desk.fetch(downloader(retries=Retries(most=1)))
    before = desk.part.read_bytes()
    is_lost = threading.Event()

    def next_fault() -> Fault:
        is_lost.set()
        return answer

    def check() -> None:
        # The thread that looks after it is woken later than the one that has its answer.
        if is_lost.is_set() and threading.current_thread().name == "download":
            raise LeaseLost

    monkeypatch.setattr(desk.file, "next_fault", next_fault)
    desk.check = check
    with pytest.raises(LeaseLost):
        desk.fetch()
    assert (desk.part.read_bytes(), desk.has_state) == (before, True)
