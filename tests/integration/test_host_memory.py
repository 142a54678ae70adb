"""A runner that takes more of the node's memory than it may."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from dreamforge.store.endings import EndingStore
from dreamforge.worker import host_memory
from dreamforge.worker.host_memory import KillCounts, kill_counts, killed_for_memory, memory_limit
from tests.integration.bench import Bench
from tests.integration.rogue import rogue

pytestmark = pytest.mark.timeout(120)

MIB = 1024 * 1024


@pytest.fixture
def needs_cgroups() -> None:
    """Skips where no cgroup is ours to make."""
    with memory_limit(256 * MIB, name="may-it") as folder:
        if folder is None:
            pytest.skip("no cgroup is ours to make: it takes root, or a cgroup that was handed over")


@pytest.mark.usefixtures("needs_cgroups")
def test_it_is_killed_alone_and_told_from_a_crash(bench: Bench) -> None:
    new = bench.submit(count=2, seed=5)
    claimed = bench.claim()
    failure = bench.supervise(claimed, runner=rogue("take_a_lot_of_memory"), step_memory=256 * MIB).failure
    assert failure is not None
    assert failure.code == "host_oom"
    assert failure.details == {"exit_code": -signal.SIGKILL, "counted_by": "cgroup", "limit_bytes": 256 * MIB}
    assert len(bench.artifacts(new.id)) == 1, "what was finished stays"
    retry = EndingStore(engine=bench.engine).finalize(claimed.fence).retry
    assert retry is not None
    own = host_memory.own_cgroup()
    assert own is not None
    assert not [path for parent in (own.parent, own) for path in parent.glob(f"dreamforge-{claimed.fence.step_id}*")]


@pytest.mark.usefixtures("needs_cgroups")
def test_one_that_keeps_to_its_limit_does_not_notice_it(bench: Bench) -> None:
    bench.submit(count=2, seed=5)
    assert bench.supervise(bench.claim(), runner=rogue("draw"), step_memory=512 * MIB).failure is None


@pytest.mark.usefixtures("needs_cgroups")
def test_a_kill_by_somebody_else_is_a_crash(bench: Bench) -> None:
    bench.submit(count=2, seed=5)
    failure = bench.supervise(bench.claim(), runner=rogue("be_killed"), step_memory=512 * MIB).failure
    assert failure is not None
    assert (failure.code, failure.details) == ("runner_crashed", {"exit_code": -signal.SIGKILL})


def test_where_there_is_no_cgroup_the_step_runs_and_says_that_it_is_not_limited(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_memory, "own_cgroup", lambda: None)
    bench.submit(count=1, seed=5)
    assert bench.supervise(bench.claim(), runner=rogue("draw"), step_memory=256 * MIB).failure is None
    with bench.engine.connect() as connection:
        messages = connection.scalars(
            text("SELECT payload_json ->> 'message' FROM events WHERE level = 'warning'")
        ).all()
    assert messages == ["The runner's memory cannot be limited on this node: no cgroup is ours to make."]


@pytest.mark.parametrize(
    ("before", "after", "who"),
    [
        ((3, 7), (4, 8), "cgroup"),
        ((3, 7), (3, 8), None),
        ((None, 7), (None, 8), "machine"),
        ((3, 7), (3, 7), None),
        ((3, None), (3, 9), None),
        ((None, None), (None, None), None),
    ],
)
def test_the_kernel_s_counters_are_the_evidence(
    before: tuple[int | None, int | None], after: tuple[int | None, int | None], who: str | None
) -> None:
    assert killed_for_memory(KillCounts(*before), KillCounts(*after)) == who


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], Path]:
    """Makes a machine whose /proc and cgroups are files of ours."""

    def make(files: dict[str, str]) -> Path:
        for name, content in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content.replace("ROOT", str(tmp_path)))
        monkeypatch.setattr(host_memory, "_PROC", tmp_path / "proc")
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("files", "folder"),
    [
        (
            {
                "proc/mounts": "cgroup2 ROOT/cg cgroup2 rw,nosuid 0 0\n",
                "proc/self/cgroup": "0::/user.slice/a\n",
                "cg/user.slice/a/memory.events": "low 0\noom 2\noom_kill 2\noom_group_kill 0\n",
            },
            "cg/user.slice/a",
        ),
        (
            {
                "proc/mounts": "cgroup2 ROOT/cg cgroup2 rw 0 0\n",
                "proc/self/cgroup": "0::/docker/0123\n",
                "cg/memory.events": "oom_kill 2\n",
            },
            "cg",
        ),
        (
            {
                "proc/mounts": "cgroup ROOT/cpu cgroup rw,cpu 0 0\ncgroup ROOT/mem cgroup rw,memory 0 0\n",
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/x\n0::/\n",
                "mem/x/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            },
            "mem/x",
        ),
    ],
    ids=["version 2", "version 2 in a container", "version 1"],
)
def test_both_versions_of_cgroups_are_read(
    machine: Callable[[dict[str, str]], Path], files: dict[str, str], folder: str
) -> None:
    root = machine({**files, "proc/vmstat": "pgpgin 1\noom_kill 5\n"})
    assert host_memory.own_cgroup() == root / folder
    assert kill_counts(None) == KillCounts(cgroup=2, machine=5)


def test_a_machine_without_them_has_no_evidence(machine: Callable[[dict[str, str]], Path]) -> None:
    machine({"proc/mounts": "", "proc/self/cgroup": ""})
    assert kill_counts(None) == KillCounts(cgroup=None, machine=None)
