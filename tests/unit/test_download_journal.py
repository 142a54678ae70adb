"""What a download tells of itself, and how often."""

from typing import Any, cast

from dreamforge.installation.observer import Phase
from dreamforge.jobs.events import Event, ItemProgress, ModelFetching, RunnerLog
from dreamforge.models.remote import RemoteFile, RemoteModel
from dreamforge.worker.download_journal import DownloadJournal

MODEL = RemoteModel(
    source_uri="hf:org/repo@1",
    name="repo",
    version="1",
    files=tuple(RemoteFile(path=path, url=f"https://example.org/{path}", size=1000) for path in ("a", "b")),
)


class _Kept:
    """A journal that writes nowhere."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def record(self, event: Event) -> None:
        self.events.append(event)

    record_progress = record


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class _Download:
    def __init__(self) -> None:
        self.kept, self.clock = _Kept(), _Clock()
        journal = cast("Any", self.kept)
        self.observer = DownloadJournal(journal, item_index=0, model="repo", origin="hf", clock=self.clock)

    def resolved(self) -> "_Download":
        self.observer.on_phase(Phase.RESOLVE)
        self.observer.on_resolved(MODEL)
        self.observer.on_phase(Phase.DOWNLOAD)
        return self

    def bytes(self, path: str, done: int, *, after: float = 1.0, phase: Phase = Phase.DOWNLOAD) -> None:
        self.clock.now += after
        self.observer.on_bytes(phase, path, done, 1000)

    def fetched(self) -> list[tuple[int, int | None]]:
        return [(event.bytes_done, event.bytes_total) for event in self.kept.events if isinstance(event, ModelFetching)]

    def progress(self) -> list[ItemProgress]:
        return [event for event in self.kept.events if isinstance(event, ItemProgress)]


def test_bytes_are_those_of_all_files_together() -> None:
    download = _Download().resolved()
    download.bytes("a", 500)
    download.bytes("b", 250)
    download.bytes("a", 1000)
    assert download.fetched() == [(500, 2000), (750, 2000), (1250, 2000)]
    assert [round(told.stage_progress, 3) for told in download.progress()[-3:]] == [0.25, 0.375, 0.625]
    assert {told.stage for told in download.progress()} == {"resolve", "download"}


def test_news_come_twice_a_second_at_most_but_the_last_always() -> None:
    download = _Download().resolved()
    for done in range(0, 1000, 10):
        download.bytes("a", done, after=0.01)
    assert len(download.fetched()) == 2
    download.bytes("b", 1000, after=0.001)
    download.bytes("a", 1000, after=0.001)
    assert download.fetched()[-1] == (2000, 2000)
    count = len(download.kept.events)
    download.bytes("a", 1000, after=60)
    assert len(download.kept.events) == count, "nothing new"


def test_a_download_of_hours_makes_hundreds_of_events() -> None:
    download = _Download().resolved()
    for tenth in range(6 * 3600 * 10):
        download.observer.on_bytes(Phase.DOWNLOAD, "a", tenth, 10**9)
        download.clock.now += 0.1
    assert len(download.fetched()) < 2500


def test_a_source_that_tells_no_size_has_bytes_and_no_share() -> None:
    download = _Download()
    download.observer.on_phase(Phase.DOWNLOAD)
    download.observer.on_bytes(Phase.DOWNLOAD, "a", 10, None)
    assert download.fetched() == [(10, None)]
    assert download.progress()[-1].stage_progress == 0.0


def test_progress_never_goes_down_and_phases_do_not_go_back() -> None:
    download = _Download().resolved()
    download.bytes("a", 1000)
    download.observer.on_phase(Phase.INSPECT)
    download.observer.on_phase(Phase.PUBLISH)
    download.bytes("a", 500, phase=Phase.PUBLISH)
    # Of a thread that is late.
    download.bytes("a", 1000, phase=Phase.DOWNLOAD)
    download.observer.on_phase(Phase.REGISTER)
    download.observer.on_phase(Phase.PUBLISH)
    download.bytes("b", 1000, phase=Phase.PUBLISH)
    told = [event.progress for event in download.progress()]
    assert told == sorted(told)
    stages = list(dict.fromkeys(event.stage for event in download.progress()))
    assert stages == ["resolve", "download", "inspect", "publish", "register"]
    assert download.progress()[-1].stage == "register"
    assert download.fetched() == [(1000, 2000)], "what is published is not fetched"


def test_whoever_waits_says_once_for_whom_and_tells_how_far_they_are() -> None:
    download = _Download()
    download.observer.on_phase(Phase.RESOLVE)
    download.observer.on_resolved(MODEL)
    for done in (100, 900):
        download.clock.now += 5
        download.observer.on_wait("repo@1", "process 7 on there", done, 2000)
    (said,) = [event for event in download.kept.events if isinstance(event, RunnerLog)]
    assert said.details == {"owner": "process 7 on there"}
    assert download.fetched() == [(100, 2000), (900, 2000)]
    assert download.progress()[-1].stage == "download"
    download.observer.on_phase(Phase.DOWNLOAD)
    download.bytes("a", 1000)
    assert download.fetched()[-1] == (1000, 2000)


def test_a_file_that_somebody_else_downloads_counts_among_the_others() -> None:
    download = _Download().resolved()
    download.bytes("a", 1000)
    download.clock.now += 5
    download.observer.on_wait("b", "process 7 on there", 500, 1000)
    assert download.fetched()[-1] == (1500, 2000)


def test_each_phase_has_its_time() -> None:
    download = _Download().resolved()
    download.clock.now += 7
    download.observer.on_phase(Phase.INSPECT)
    download.clock.now += 2
    assert download.observer.timings() == {"resolve": 0.0, "download": 7.0, "inspect": 2.0}
