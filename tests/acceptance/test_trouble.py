"""`dreamforge up` on a machine that is short of something, or was left in disorder."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg
import pytest

from tests.refusal import Refusals
from tests.running_stack import RunningStack, command_of, lives, wait_for

pytestmark = pytest.mark.timeout(400)

_AS_ROOT = ("unshare", "--user", "--map-root-user", "--mount")
"""A namespace in which file systems can be mounted, and root has no power over other people's files."""
_AS_NOBODY = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
_MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
_FOUR_GIB = 4 * 1024**3


def _within(mount: str, *then: str) -> list[str]:
    """A command that runs another one after ``mount``."""
    return [*_AS_ROOT, "sh", "-c", f'{mount} && exec "$@"', "sh", *then]


def _needs(command: Sequence[str]) -> None:
    if (
        shutil.which(command[0]) is None
        or subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this kernel lets nobody make a user namespace")


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[RunningStack]:
    stack = RunningStack(data_dir=tmp_path / "data", DREAMFORGE_MODELS_DIR=str(tmp_path / "data" / "models"))
    stack.data_dir.mkdir()
    yield stack
    if hasattr(stack, "process"):
        stack.kill()


def test_a_data_folder_that_is_none_or_not_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for data_dir in (tmp_path / "file" / "data", Path("/proc/dreamforge")):
        stack = RunningStack(data_dir=data_dir)
        result = stack.command("up")
        assert result.returncode == 1
        assert result.stdout.startswith(f"✗ The data folder {data_dir} cannot be used (")
        assert result.stdout.count("\n") == 1
        assert "Traceback" not in result.stdout + result.stderr


def test_a_folder_without_rights_is_named(own_stack: RunningStack) -> None:
    _needs(_AS_NOBODY)
    own_stack.data_dir.chmod(0o500)
    # Within a namespace root is a user like others.
    own_stack.output = own_stack.data_dir.parent / "up.out"
    own_stack.start(within=_AS_NOBODY)
    assert own_stack.wait_for_end(seconds=60) == 1
    assert "cannot be used (Permission denied). Set DREAMFORGE_DATA_DIR" in own_stack.said()


def test_a_full_disk_is_told_before_anything_is_started(own_stack: RunningStack) -> None:
    mounted = _within(f"mount -t tmpfs -o size=100m tmpfs {own_stack.data_dir}")
    _needs(_within("mount -t tmpfs tmpfs /mnt"))
    own_stack.output = own_stack.data_dir.parent / "up.out"
    own_stack.start(within=mounted)
    assert own_stack.wait_for_end(seconds=60) == 1
    said = own_stack.said()
    assert "MiB are free for" in said
    assert "Make room, or set DREAMFORGE_DATA_DIR" in said
    assert "PostgreSQL" not in said


def test_a_data_folder_of_another_postgresql_is_told(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("15\n")
    stack = RunningStack(data_dir=tmp_path)
    stack.start()
    assert stack.wait_for_end(seconds=60) == 1
    assert f"{tmp_path}/postgres was made by PostgreSQL 15; the embedded one is 18." in stack.said()
    assert "Traceback" not in stack.said()


def test_an_empty_secret_is_told(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "valkey_password").touch()
    Refusals(tmp_path).sentence(f"{tmp_path}/secrets/valkey_password is empty")


def test_a_stack_that_was_killed_with_all_its_servers_comes_back_as_it_was(own_stack: RunningStack) -> None:
    own_stack.start()
    own_stack.wait_until_ready()
    job = own_stack.run(count=2, params={"prompt": "kept", "seed": 3})
    artifacts = [artifact["checksum"] for artifact in own_stack.artifacts(job)]
    family = own_stack.family()
    for process in family:
        os.kill(process.pid, signal.SIGKILL)
    own_stack.wait_for_end()
    wait_for(lambda: not [process for process in family if lives(process)], what="the end of all of them")
    assert (own_stack.data_dir / "postgres" / "postmaster.pid").exists(), "nobody has tidied up"
    # A power cut leaves a line that was being written.
    (written,) = (own_stack.data_dir / "valkey").rglob("*.incr.aof")
    with written.open("ab") as stream:
        stream.write(b"*3\r\n$3\r\nSET\r\n$7\r\nhalf-wr")

    own_stack.start()
    own_stack.wait_until_ready()
    assert "Traceback" not in own_stack.said()
    assert own_stack.get(job["links"]["self"]).json() == job
    assert [artifact["checksum"] for artifact in own_stack.artifacts(job)] == artifacts
    assert own_stack.run(params={"prompt": "new"})["status"] == "succeeded"

    with psycopg.connect(own_stack.database_url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    own_stack.send(signal.SIGTERM)
    assert own_stack.wait_for_end() == 0
    own_stack.start()
    assert own_stack.wait_for_end(seconds=60) == 1
    sentence = own_stack.said().strip().splitlines()[-1]
    assert sentence.startswith("✗ ")
    assert "'9999'" in sentence
    assert "probably a newer one: use that version" in sentence
    assert "Traceback" not in own_stack.said()


def test_it_runs_without_root_and_without_shared_memory(own_stack: RunningStack) -> None:
    within = _within("mount -t tmpfs -o ro,size=4k tmpfs /dev/shm", *_AS_NOBODY)
    _needs(within)
    own_stack.start(within=within)
    own_stack.wait_until_ready()
    (command,) = [command for process in own_stack.family() if " -D " in (command := command_of(process))]
    assert "dynamic_shared_memory_type=mmap" in command.split()
    assert own_stack.run(params={"prompt": "small"})["status"] == "succeeded"
    own_stack.send(signal.SIGTERM)
    assert own_stack.wait_for_end() == 0


@pytest.fixture
def four_gib() -> Iterator[Path]:
    """A group of processes that may have 4 GiB of memory together."""
    group = _MEMORY_GROUPS / f"dreamforge-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(_FOUR_GIB))
    except OSError as error:
        pytest.skip(f"no memory cgroup (version 1) can be made here: {error.strerror}")
    yield group
    wait_for(lambda: not (group / "cgroup.procs").read_text(), what="the end of the group's processes")
    group.rmdir()


def test_four_gib_of_memory_are_enough(own_stack: RunningStack, four_gib: Path) -> None:
    own_stack.start(within=("sh", "-c", f'echo $$ > {four_gib}/cgroup.procs && exec "$@"', "sh"))
    own_stack.wait_until_ready()
    job = own_stack.run(count=2, params={"prompt": "large", "width": 512, "height": 512})
    assert job["status"] == "succeeded", job["error"]
    assert int((four_gib / "memory.failcnt").read_text()) == 0
    own_stack.send(signal.SIGTERM)
    assert own_stack.wait_for_end() == 0
