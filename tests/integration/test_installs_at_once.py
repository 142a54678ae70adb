"""Several who install the same: one transfer, whoever dies, freezes or waits."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import Engine, text

from dreamforge.errors import LeaseLost
from dreamforge.installation.fetcher import Engine as Downloads
from dreamforge.installation.fetcher import ShelfFetcher
from dreamforge.installation.holding import holding, lease_clock
from dreamforge.installation.install import Installation, Installer, InstallRequest
from dreamforge.installation.observer import Phase
from dreamforge.models.descriptor import ModelFile
from dreamforge.models.remote import Location, RemoteFile
from dreamforge.models.shelf import Shelf
from dreamforge.store.downloads import DownloadLease, DownloadLeases, Holder
from tests.hubs.hosting import Fault, HostedFile
from tests.integration.cli import command
from tests.integration.installing import Place, Watcher
from tests.service import wait_for

SLOW = Fault(drip=0.05, drip_bytes=65_536)


def _started(place: Place, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("model", "download", *arguments, "--json"),
        env=place.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _events(process: subprocess.Popen[str]) -> list[dict[str, object]]:
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return [json.loads(line) for line in said.splitlines()]


def _installing(place: Place, watcher: Watcher, request: InstallRequest) -> Callable[[], Installation]:
    """Install in a thread, with an owner of its own; the result when it is asked for."""
    done: list[Installation] = []

    def install() -> None:
        with place.workshop(owner=f"somebody {uuid.uuid4().hex[:4]}") as workshop:
            done.append(Installer.of(workshop).install(request, observer=watcher))

    thread = threading.Thread(target=install)
    thread.start()

    def result() -> Installation:
        thread.join(120)
        return done[0]

    return result


def test_two_commands_share_one_download(place: Place) -> None:
    stored = place.add_checkpoint("org/xl")
    stored.fault = SLOW
    both = [_started(place, "hf:org/xl"), _started(place, "hf:org/xl")]
    told = [_events(process) for process in both]
    ends = [events[-1] for events in told]
    assert {end["event"] for end in ends} == {"installed"}
    assert sorted(bool(end["was_there"]) for end in ends) == [False, True]
    assert stored.bytes_sent == stored.size
    waits = [event for events in told for event in events if event["event"] == "wait"]
    assert waits, "who waits is told for whom"
    assert {str(wait["owner"]).split()[0] for wait in waits} == {"process"}


def test_a_file_of_two_models_is_fetched_once(place: Place) -> None:
    stored = place.add_checkpoint("org/xl")
    stored.fault = SLOW
    watchers = [Watcher(), Watcher()]
    results = [
        _installing(place, watcher, InstallRequest("hf:org/xl", name=name))
        for watcher, name in zip(watchers, ("one", "two"), strict=True)
    ]
    installed = [result() for result in results]
    assert sorted(one.downloaded_bytes for one in installed) == [0, stored.size]
    assert stored.bytes_sent == stored.size
    waited = [wait for watcher in watchers for wait in watcher.waits]
    assert {path for path, *_ in waited} == {"XL.safetensors"}
    assert max(done for *_, done, _ in waited) > 0, "how far it has come"


def test_who_waits_for_the_dead_goes_on_where_they_broke_off(place: Place) -> None:
    stored = place.add_checkpoint("org/xl")
    stored.fault = Fault(drip=0.1, drip_bytes=65_536)
    holder = _with_short_lease(place, "hf:org/xl")
    watcher = Watcher()
    try:
        _wait_for_half(place, stored)
        result = _installing(place, watcher, InstallRequest("hf:org/xl"))
        assert watcher.has_waited.wait(60)
    finally:
        holder.kill()
        holder.communicate()
    stored.fault = Fault()
    assert result().registered.is_new
    assert stored.bytes_sent < 1.4 * stored.size


def test_who_was_frozen_writes_nothing_more(place: Place) -> None:
    stored = place.add_checkpoint("org/xl")
    stored.fault = Fault(drip=0.1, drip_bytes=65_536)
    frozen = _with_short_lease(place, "hf:org/xl")
    try:
        _wait_for_half(place, stored)
        frozen.send_signal(signal.SIGSTOP)
        stored.fault = Fault()
        installed = place.install("hf:org/xl")
        assert installed.registered.is_new
        path = installed.folder / "XL.safetensors"
        before = path.stat().st_mtime_ns
        frozen.send_signal(signal.SIGCONT)
        said, errors = frozen.communicate(timeout=120)
        assert frozen.returncode == 0, errors
        assert said.split() == ["True", "0"], "it was there, and nothing was brought"
    finally:
        frozen.kill()
        frozen.communicate()
    assert path.stat().st_mtime_ns == before
    assert path.read_bytes() == place.hub.repos["org/xl"].head.body("XL.safetensors")
    assert not place.files("partial")


def test_who_wakes_up_clears_away_nothing_of_who_came_after(place: Place) -> None:
    """One was frozen over a staged model; another has staged the same since, and is about to place it."""
    with place.workshop() as workshop:
        shelf = workshop.shelf
        frozen, next_one = shelf.staging("install-xl@1"), shelf.staging("install-xl@1")
        left = frozen.__enter__()
        (left / "file").write_text("old")
        with next_one as staged:
            assert not left.exists()
            (staged / "file").write_text("new")
            frozen.__exit__(None, None, None)
            assert (staged / "file").read_text() == "new"
            assert [shelf.key_of(path) for path in shelf.unfinished()] == ["install-xl@1"]
        assert not list(shelf.unfinished())


def test_who_lost_the_lease_blames_nothing_else_and_tries_again(
    place: Place, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever came after has cleared its files away while it was reading them."""
    stored = place.add_checkpoint("org/xl")
    watcher = Watcher()
    on_phase = watcher.on_phase

    def frozen(phase: Phase) -> None:
        on_phase(phase)
        if watcher.phases.count(Phase.INSPECT) == 1 and phase is Phase.INSPECT:
            with engine.begin() as connection:
                connection.execute(text("UPDATE downloads SET lease_token = gen_random_uuid()"))
            wait_for(lambda: not DownloadLeases(engine=engine).live(Shelf(place.root).place()))
            (left,) = (place.root / "partial").glob("install-*")
            shutil.rmtree(left)

    monkeypatch.setattr(watcher, "on_phase", frozen)
    assert place.install("hf:org/xl", watcher=watcher).registered.is_new
    assert watcher.phases.count(Phase.INSPECT) == 2
    assert stored.bytes_sent == stored.size


_PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
from dreamforge.blobs import BlobSettings
from dreamforge.installation.install import Installer, InstallRequest
from dreamforge.installation.opening import WorkshopValues, open_workshop
from dreamforge.store.downloads import DownloadLeases
from dreamforge.store.engine import open_engine
from tests.integration.installing import LEASE_SECONDS, Watcher
database_url, root, endpoint, reference = sys.argv[1:5]
values = WorkshopValues(database_url=database_url, models_root=Path(root), blobs=None, hf_endpoint=endpoint)
leases = DownloadLeases(engine=open_engine(database_url, application="tests", pool_size=5), seconds=LEASE_SECONDS)
with open_workshop(values) as opened:
    found = Installer.of(replace(opened, leases=leases)).install(InstallRequest(reference), observer=Watcher())
print(found.was_there, found.downloaded_bytes)
"""


def _with_short_lease(place: Place, reference: str) -> subprocess.Popen[str]:
    """A process that installs, and whose lease soon ends when it does not live."""
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, place.database_url, str(place.root), place.hub.endpoint, reference],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for_half(place: Place, stored: HostedFile) -> None:
    """Return once more than half of it is on the disk, and written down."""

    def is_there() -> bool:
        parts = [path for path in place.files("partial") if path.suffix == ".part"]
        return any(path.stat().st_blocks * 512 > stored.size // 2 for path in parts)

    wait_for(is_there)


def test_a_lease_has_one_holder_and_ends_by_itself(engine: Engine) -> None:
    leases = DownloadLeases(engine=engine, seconds=0.5)
    place = uuid.uuid4()
    first = leases.take(place, "key", owner="first", size=10)
    assert isinstance(first, DownloadLease)
    leases.renew(first, bytes_done=4, size=10)
    assert leases.take(place, "key", owner="second") == Holder(owner="first", bytes_done=4, size=10)
    assert isinstance(leases.take(uuid.uuid4(), "key", owner="second"), DownloadLease), "another folder"
    assert leases.live(place) == {"key"}
    wait_for(lambda: not leases.live(place))
    # Nobody has come: it is still theirs.
    leases.renew(first)
    wait_for(lambda: not leases.live(place))
    second = leases.take(place, "key", owner="second")
    assert isinstance(second, DownloadLease)
    with pytest.raises(LeaseLost):
        leases.renew(first)
    leases.give_back(first)
    assert leases.live(place) == {"key"}, "it was not theirs to give back"
    leases.give_back(second)
    assert leases.live(place) == set()


def test_a_lease_that_is_held_is_renewed_until_it_is_lost(engine: Engine) -> None:
    leases = DownloadLeases(engine=engine, seconds=1.0)
    place = uuid.uuid4()
    lease = leases.take(place, "key", owner="first")
    assert isinstance(lease, DownloadLease)
    with holding(leases, lease, taken_at=lease_clock()) as held:
        held.tell(5, 10)
        time.sleep(2.0)  # twice its time
        held.check()
        assert leases.take(place, "key", owner="second") == Holder(owner="first", bytes_done=5, size=10)
        leases.give_back(lease)
        stolen = leases.take(place, "key", owner="second")
        assert isinstance(stolen, DownloadLease)

        def is_lost() -> bool:
            try:
                held.check()
            except LeaseLost:
                return True
            return False

        wait_for(is_lost)
    assert leases.live(place) == {"key"}, "the thief's"


def test_a_fetcher_whose_lease_was_taken_goes_on_when_it_is_free(place: Place, engine: Engine) -> None:
    data = b"x" * 300_000
    hosted = place.hub.storage.add("file", data)
    file = RemoteFile(path="file", url=hosted.url, size=len(data), sha256=hosted.sha256)
    waits: list[str] = []
    with place.workshop() as workshop:

        def fetch(file: RemoteFile, locate: Callable[[], Location], part: Path, **more: Any) -> ModelFile:
            """The first time somebody else takes the lease, for a while."""
            if not waits:
                with engine.begin() as connection:
                    taken = "UPDATE downloads SET lease_token = gen_random_uuid(), owner = 'thief'"
                    connection.execute(text(f"{taken}, lease_expires_at = now() + interval '2 s'"))
                while True:
                    more["check"]()
                    time.sleep(0.01)
            return workshop.downloader.fetch(file, locate, part, **more)

        robbed = cast(Downloads, SimpleNamespace(fetch=fetch))
        fetcher = ShelfFetcher(
            shelf=workshop.shelf, leases=workshop.leases, downloader=robbed, owner="me",
            on_wait=lambda *told: waits.append(told[1]),
        )  # fmt: skip
        found = fetcher.have(file, lambda: Location(hosted.url))
        assert (found.sha256, workshop.shelf.has(hosted.sha256, len(data))) == (hosted.sha256, True)
        assert set(waits) == {"thief"}
        assert workshop.leases.live(workshop.shelf.place()) == set()


def test_the_lease_of_whoever_asks_is_not_ours_to_win_back(place: Place) -> None:
    place.add_checkpoint("org/xl")

    def check() -> None:
        raise LeaseLost("the job's")

    with place.workshop() as workshop, pytest.raises(LeaseLost, match="the job's"):
        Installer.of(workshop).install(InstallRequest("hf:org/xl"), observer=Watcher(), check=check)
