"""One step under its supervisor while the object store is away, each way that it can be."""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dreamforge.blobs import Blobs
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.embedded.ports import free_port
from dreamforge.worker.saving import MOST_HELD
from tests.faults import full_disk, small_disk, stopped
from tests.figures import Tell
from tests.integration.absence import absence, begun, finalize_and_claim, finished, warnings
from tests.integration.bench import Bench, runner_of_this_process
from tests.integration.rogue import rogue
from tests.relay import Relay

pytestmark = pytest.mark.timeout(180)


@contextmanager
def refused(relay: Relay, _: Path) -> Generator[None]:
    """Nobody listens."""
    with relay.refusing():
        yield


@contextmanager
def black_holed(relay: Relay, _: Path) -> Generator[None]:
    """What is sent is taken, and nothing is answered."""
    with relay.frozen():
        yield


@contextmanager
def forbidden(relay: Relay, folder: Path) -> Generator[None]:
    """It knows another key: 403."""
    with _store(folder / "theirs", folder / "their key") as store, relay.leading_to(store.endpoint):
        yield


@contextmanager
def full(relay: Relay, folder: Path) -> Generator[None]:
    """Its disk has no room left."""
    # The key is the one of the tests' own server.
    with (
        small_disk(folder / "small", mib=4) as disk,
        _store(disk / "s3", folder / "key") as store,
        full_disk(disk),
        relay.leading_to(store.endpoint),
    ):
        yield


@contextmanager
def broken(relay: Relay, _: Path) -> Generator[None]:
    """It answers 500 to everything."""

    class Broken(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(500)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with relay.leading_to(f"http://127.0.0.1:{server.server_port}"):
                yield
        finally:
            server.shutdown()


@contextmanager
def _store(data: Path, key: Path) -> Generator[ObjectStore]:
    store = ObjectStore(data=data, port=free_port(), log=key.with_suffix(".log"), secret_key_file=key)
    store.start()
    try:
        store.wait_ready()
        yield store
    finally:
        store.stop()


OUTAGES = [refused, black_holed, forbidden, full, broken]
Outage = Callable[[Relay, Path], AbstractContextManager[None]]


@pytest.fixture
def relay(bench: Bench, tmp_path: Path) -> Iterator[Relay]:
    """What stands between the supervisor and the store."""
    (tmp_path / "key").write_text(bench.store.secret_key)
    (tmp_path / "key").chmod(0o600)
    with Relay.before(bench.store.endpoint) as relay:
        yield relay


def _over(relay: Relay, bench: Bench) -> Blobs:
    settings = bench.store.settings()
    return Blobs(replace(settings, endpoint=relay.moved(settings.endpoint)), read_timeout=1.0)


def _kept(bench: Bench) -> list[int]:
    return sorted(int(path.stem) for path in (bench.folder / "spool").rglob("*.image"))


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_store_that_is_away_for_a_while_is_outlasted(
    bench: Bench, relay: Relay, tmp_path: Path, outage: Outage, tell: Tell
) -> None:
    new = bench.submit(count=30, seed=5)
    claimed = bench.claim()
    with absence(
        outage(relay, tmp_path),
        once=lambda: bench.artifacts(new.id),
        # It has told of it, and the runner has drawn on as far as it may.
        until=lambda: warnings(bench, new) and len(begun(bench, new)) > len(bench.artifacts(new.id)) + MOST_HELD,
    ) as times:
        assert bench.supervise(claimed, blobs=_over(relay, bench), runner=rogue("draw")).failure is None
    drained = time.monotonic() - times.over
    assert finished(bench, new) == begun(bench, new) == list(range(30)), "none is lost, and none is made again"
    told = [warning["details"]["item_index"] for warning in warnings(bench, new)]
    assert len(told) == len(set(told)), "once for an image"
    assert not _kept(bench), "nothing is left on the disk"
    tell(
        f"S3 {outage.__name__.replace('_', ' ')}",
        told_of_and_drawn_on_within_s=times.seen - times.began,
        drained_once_it_is_back_in_s=drained,
        images_made_again=len(begun(bench, new)) - 30,
    )


@pytest.mark.parametrize("outage", OUTAGES)
def test_one_that_stays_away_ends_the_attempt_and_the_next_one_draws_no_image_again(
    bench: Bench, relay: Relay, tmp_path: Path, outage: Outage, tell: Tell
) -> None:
    new = bench.submit(count=30, seed=5)
    claimed = bench.claim()
    is_over = threading.Event()
    with absence(outage(relay, tmp_path), once=lambda: bench.artifacts(new.id), until=is_over.is_set) as times:
        failure = bench.supervise(claimed, blobs=_over(relay, bench), runner=rogue("draw"), storage_grace=2.5).failure
        gave_up = time.monotonic() - times.began
        is_over.set()
    assert failure is not None
    assert failure.code == "storage_unavailable"
    assert failure.details["seconds"] >= 2
    assert failure.details["tries"] >= 2
    assert (failure.details.get("code") is not None) == (outage in {forbidden, full, broken}), failure.details
    made = len(bench.artifacts(new.id))
    kept = _kept(bench)
    assert kept == list(range(made, made + len(kept)))
    assert 1 <= len(kept) <= MOST_HELD + 1
    drawn = begun(bench, new)
    assert bench.supervise(finalize_and_claim(bench, claimed), runner=rogue("draw")).failure is None
    assert finished(bench, new) == list(range(30))
    again = set(begun(bench, new)[len(drawn) :]) & set(range(made + len(kept)))
    assert not again, "what was kept is not drawn again"
    assert not _kept(bench)
    tell(
        f"S3 {outage.__name__.replace('_', ' ')} for good",
        given_up_after_s=gave_up,
        images_kept=len(kept),
        images_made_again=len(again),
    )


def test_a_step_whose_images_were_all_kept_needs_no_runner(bench: Bench, relay: Relay) -> None:
    new = bench.submit(count=2, seed=5)
    claimed = bench.claim()
    with relay.refusing():
        failure = bench.supervise(claimed, blobs=_over(relay, bench), runner=rogue("draw"), storage_grace=1).failure
    assert failure is not None
    assert failure.code == "storage_unavailable"
    # One that would draw nothing, if it were asked.
    again = finalize_and_claim(bench, claimed)
    assert bench.supervise(again, runner=rogue("exit_badly", draws=0)).failure is None
    assert finished(bench, new) == [0, 1]


def test_what_was_drawn_before_a_crash_is_stored_while_the_store_is_there(bench: Bench) -> None:
    for _ in range(5):
        new = bench.submit(count=5, seed=5)
        failure = bench.supervise(bench.claim(), runner=rogue("exit_badly", draws=4)).failure
        assert failure is not None
        assert failure.code == "runner_crashed"
        assert finished(bench, new) == [0, 1, 2, 3]
    assert not _kept(bench)


def test_a_node_whose_disk_is_full_keeps_nothing_and_draws_again(bench: Bench, relay: Relay) -> None:
    new = bench.submit(count=2, seed=5)
    claimed = bench.claim()
    with small_disk(bench.folder / "spool", mib=1) as disk, full_disk(disk):
        with relay.refusing():
            failure = bench.supervise(claimed, blobs=_over(relay, bench), runner=rogue("draw"), storage_grace=1).failure
        assert failure is not None
        assert failure.code == "storage_unavailable"
        assert bench.supervise(finalize_and_claim(bench, claimed), runner=rogue("draw")).failure is None
    assert finished(bench, new) == [0, 1]


def test_a_time_limit_holds_while_an_upload_hangs(bench: Bench) -> None:
    new = bench.submit(count=50)
    claimed = bench.claim()
    is_over = threading.Event()
    with absence(_frozen(bench), once=lambda: bench.artifacts(new.id), until=is_over.is_set):
        began = time.monotonic()
        outcome = bench.supervise(claimed, runner=rogue("draw"), step_timeout=8)
        took = time.monotonic() - began
        is_over.set()
    assert took < 25
    assert outcome.failure is not None
    assert outcome.failure.code == "storage_unavailable", "the step is not to blame, and is tried again"
    assert outcome.failure.details["waited_seconds"] >= 5
    assert _kept(bench), "what was held is kept"
    assert runner_of_this_process() is None


def test_a_store_that_takes_its_time_costs_nothing_but_time(bench: Bench) -> None:
    new = bench.submit(count=2)
    claimed = bench.claim()
    with absence(_frozen(bench), once=lambda: bench.artifacts(new.id), until=lambda: True, seconds=12):
        assert bench.supervise(claimed).failure is None
    assert len(bench.artifacts(new.id)) == 2
    assert not warnings(bench, new)


def _frozen(bench: Bench) -> AbstractContextManager[None]:
    server = bench.store.process
    assert server is not None
    return stopped(server.pid)
