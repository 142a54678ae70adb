"""The runner's process as the supervisor holds it. The child here is no runner but a few lines of Python."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dreamforge.errors import NodeError
from dreamforge.jobs.channel import ChannelClosed, FrameChannel
from dreamforge.jobs.frames import BeginItems, Log
from dreamforge.worker import child
from dreamforge.worker.child import OUTPUT_KEPT, RunnerProcess, runner_environment

ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}
_CHANNEL = """
import os, signal, socket, sys
from dreamforge.jobs.channel import FrameChannel
from dreamforge.jobs.frames import BeginItems, Log
channel = FrameChannel(socket.socket(fileno=int(sys.argv[1])))
def say(message):
    channel.send(Log(level="info", message=str(message)))
"""
_WAIT = "\nchannel.receive()\n"


def _running(code: str, *, inherited: tuple[int, ...] = (), environment: dict[str, str] | None = None) -> RunnerProcess:
    return RunnerProcess(
        environment=environment or ENVIRONMENT,
        inherited=inherited,
        stop_grace=0.1,
        command=(sys.executable, "-c", _CHANNEL + code),
    )


def _heard(runner: RunnerProcess) -> str:
    message = runner.channel.receive(timeout=20)
    assert isinstance(message, Log)
    return message.message


def _is_gone(pid: int) -> bool:
    """True once the process has ended; one that nobody has reaped yet counts as ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _until(condition: Callable[[], bool], *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def test_it_speaks_over_its_socket_and_knows_its_parent() -> None:
    with _running("say(sys.argv[2])\nassert isinstance(channel.receive(), BeginItems)\nsay('begun')" + _WAIT) as runner:
        assert _heard(runner) == str(os.getpid())
        runner.channel.send(BeginItems(item_indexes=[0], seeds=[1]))
        assert _heard(runner) == "begun"


def test_its_exit_code_is_told_and_its_end_closes_the_channel() -> None:
    with _running("os._exit(7)") as runner:
        assert runner.wait(20) == 7
        with pytest.raises(ChannelClosed):
            runner.channel.receive(timeout=5)
        assert runner.stop(0) == 7


def test_waiting_for_one_that_lives_on_gives_up_in_time() -> None:
    with _running("say('up')" + _WAIT) as runner:
        assert _heard(runner) == "up"
        assert runner.wait(0.01) is None


def test_of_its_output_only_the_end_is_kept() -> None:
    code = "for _ in range(10): sys.stdout.write('x' * 1024 * 1024)\nprint('out'); print('the end', file=sys.stderr)"
    with _running(code) as runner:
        assert runner.wait(30) == 0
        runner.stop(0)
        tail = runner.output_tail()
    assert len(tail) == OUTPUT_KEPT
    assert tail.startswith("x" * 1000)
    assert tail.endswith("xout\nthe end\n")


def test_output_is_never_more_than_a_little_over_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0

    class Watched(bytearray):
        def __iadd__(self, chunk: object) -> "Watched":
            nonlocal most
            self.extend(chunk)  # type: ignore[arg-type] - bytes, as bytearray's own takes them
            most = max(most, len(self))
            return self

    with _running("for _ in range(4): sys.stdout.write('x' * 1024 * 1024)\nsay('written')" + _WAIT) as runner:
        monkeypatch.setattr(runner, "_output", Watched(runner.output_tail().encode()))
        assert _heard(runner) == "written"
    assert OUTPUT_KEPT <= most <= 2 * OUTPUT_KEPT


def test_output_that_is_no_text_can_be_stored_all_the_same() -> None:
    with _running(r"os.write(1, b'\xff\x00ok')") as runner:
        runner.wait(20)
        runner.stop(0)
        assert runner.output_tail() == "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}ok"


def test_it_ends_on_a_polite_request() -> None:
    code = "signal.signal(signal.SIGTERM, lambda *_: os._exit(3))\nsay('up')" + _WAIT
    with _running(code) as runner:
        assert _heard(runner) == "up"
        assert runner.stop(20) == 3


def test_one_that_ignores_the_request_is_killed() -> None:
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay('up')" + _WAIT
    with _running(code) as runner:
        assert _heard(runner) == "up"
        began = time.monotonic()
        assert runner.stop(0.2) == -signal.SIGKILL
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("leaves_first", [False, True], ids=["child-lives", "child-has-left"])
def test_its_own_children_are_ended_with_it(leaves_first: bool) -> None:
    code = """
import subprocess
ignore = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
grandchild = subprocess.Popen([sys.executable, "-c", ignore], stdout=subprocess.PIPE)
grandchild.stdout.readline()
say(grandchild.pid)
"""
    with _running(code + ("os._exit(0)" if leaves_first else _WAIT)) as runner:
        grandchild = int(_heard(runner))
        if leaves_first:
            assert runner.wait(20) == 0
        assert not _is_gone(grandchild)
    _until(lambda: _is_gone(grandchild))


def test_no_child_and_no_zombie_is_left_behind_an_error() -> None:
    pids: list[int] = []

    def fail_in_the_middle() -> None:
        with _running("say('up')" + _WAIT) as runner:
            assert _heard(runner) == "up"
            pids.append(runner.pid)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail_in_the_middle()
    assert not psutil.pid_exists(pids[0])


def test_stopping_twice_signals_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with _running("say('up')" + _WAIT) as runner:
        assert _heard(runner) == "up"
        code = runner.stop(0.1)
        monkeypatch.setattr("os.killpg", lambda *_: pytest.fail("the group's id may be another's by now"))
        assert runner.stop(0.1) == code == -signal.SIGTERM


def test_a_program_that_is_not_there_leaves_nothing_open() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the kernel's list, as it is
    with (
        pytest.raises(NodeError) as caught,
        RunnerProcess(environment=ENVIRONMENT, command=("/nowhere/to/be/found",)),
    ):
        pytest.fail("it was started")
    assert caught.value.details == {"errno": "ENOENT"}
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above


def test_it_inherits_the_lock_it_was_given_and_nothing_else(tmp_path: Path) -> None:
    with (tmp_path / "given").open("w") as given, (tmp_path / "kept").open("w") as kept:
        os.set_inheritable(kept.fileno(), True)
        code = "say(sorted(os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if int(fd) > 2))"
        code = code.replace("os.readlink(", "os.path.realpath(") + _WAIT
        with _running(code, inherited=(given.fileno(),)) as runner:
            descriptors = _heard(runner)
    assert str(tmp_path / "given") in descriptors
    assert str(tmp_path / "kept") not in descriptors


def test_it_is_given_no_secret() -> None:
    secrets = {
        "DREAMFORGE_DATABASE_URL": "hunter2",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "RAY_AUTH_TOKEN": "hunter2",
        "HF_TOKEN": "hunter2",
        "HUGGING_FACE_HUB_TOKEN": "hunter2",
        "CIVITAI_TOKEN": "hunter2",
        "PGPASSWORD": "hunter2",
        "SOMETHING_ELSE": "hunter2",
    }
    with _running("say('up')" + _WAIT, environment=ENVIRONMENT | secrets) as runner:
        assert _heard(runner) == "up"
        seen = Path(f"/proc/{runner.pid}/environ").read_bytes()
    assert b"hunter2" not in seen
    assert b"HF_HUB_OFFLINE=1" in seen


def test_its_environment_is_chosen_by_name() -> None:
    given = {
        "PATH": "/bin",
        "LC_ALL": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": "GPU-1",
        "OMP_NUM_THREADS": "2",
        "HF_HUB_OFFLINE": "0",
        "DREAMFORGE_S3_SECRET_KEY": "x",
        "HF_TOKEN": "x",
        "DREAMFORGE_CIVITAI_TOKEN": "x",
    }
    environment = runner_environment(given)
    assert {name: environment.get(name) for name in given} == {
        "PATH": "/bin",
        "LC_ALL": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": "GPU-1",
        "OMP_NUM_THREADS": "2",
        "HF_HUB_OFFLINE": "1",
        "DREAMFORGE_S3_SECRET_KEY": None,
        "HF_TOKEN": None,
        "DREAMFORGE_CIVITAI_TOKEN": None,
    }
    assert environment["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert runner_environment({"OMP_WAIT_POLICY": "ACTIVE"})["OMP_WAIT_POLICY"] == "ACTIVE", "the node's own counts"


def test_the_module_knows_no_torch() -> None:
    code = f"import sys, {child.__name__}; sys.exit('torch' in sys.modules or 'dreamforge.runners' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=False).returncode == 0


def test_the_channel_is_closed_at_the_end() -> None:
    with _running("say('up')" + _WAIT) as runner:
        channel: FrameChannel = runner.channel
    with pytest.raises(ChannelClosed):
        channel.receive(timeout=0.1)
