"""A runner that does what runners do when they go wrong: `python rogue.py DEED FD PARENT`.

It says that it is ready and draws its first image, grey and very small; then it does the deed. Its images are right, so
an attempt that a deed ends has something to show.
"""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from dreamforge.jobs.channel import FrameChannel
from dreamforge.jobs.frames import (
    MAGIC,
    PREFIX,
    PROTOCOL_VERSION,
    Acknowledge,
    BeginItems,
    EndOfItems,
    ItemDrawn,
    Log,
    ModelLoaded,
    PrepareStep,
    Progress,
    Ready,
    StepDone,
    StepFailed,
    Stop,
)
from dreamforge.jobs.memory_ladder import SEQUENTIAL_OFFLOAD
from dreamforge.jobs.progress import Stage

MANY_LINES = 1000
_SIDE = 8
_AGAIN = frozenset({"run_out_of_memory"})
"""Deeds that a later process does as well, of the items that an earlier one has not drawn."""
_savings: list[str] = []
"""What this runner was told to save memory by."""
_SECOND_SEED = 6
"""Of jobs whose seed is 5."""


def _exit_well(_: FrameChannel) -> None:
    os._exit(0)


def _exit_badly(_: FrameChannel) -> None:
    os._exit(3)


def _segfault(_: FrameChannel) -> None:
    ctypes.string_at(0)


def _hold_the_gil(_: FrameChannel) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # One call into C that never comes back, and lets go of nothing meanwhile.
    re.match(r"(a+)+$", "a" * 60 + "b")


def _stand_still(_: FrameChannel) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _ignore_sigterm(_: FrameChannel) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


def _garbage(_: FrameChannel) -> None:
    _raw(b"\xff" * 4096)
    time.sleep(600)


def _huge_frame(_: FrameChannel) -> None:
    _raw(PREFIX.pack(MAGIC, PROTOCOL_VERSION, 100, 2**32 - 1))
    time.sleep(600)


def _close_the_socket(channel: FrameChannel) -> None:
    channel.close()
    time.sleep(600)


def _leave_a_grandchild(_: FrameChannel) -> None:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    os._exit(4)


def _leave_a_fork(_: FrameChannel) -> None:
    """A child that holds all that is open here, as Python's multiprocessing makes them."""
    if os.fork() == 0:
        time.sleep(600)
    os._exit(6)


def _be_ready_again(channel: FrameChannel) -> None:
    channel.send(Ready(pid=os.getpid(), versions={}, device_name="none"))
    time.sleep(600)


def _talk_without_end(channel: FrameChannel) -> None:
    for number in range(MANY_LINES):
        channel.send(Log(level="info", message=f"line {number}"))
    os._exit(7)


def _draw_twice_when_told_to_stop(channel: FrameChannel) -> None:
    while not channel.has_news():
        time.sleep(0.05)
    assert isinstance(channel.receive(), Stop)
    for _ in range(2):
        channel.send(_image(1, seed=_SECOND_SEED))
    time.sleep(600)


def _lie(channel: FrameChannel) -> None:
    """The code is of those that are tried again ten times."""
    channel.send(StepFailed(code="node_lost", message="Me?", details={}, suggestions=[], peak_memory=None))
    assert isinstance(channel.receive(), Acknowledge)
    os._exit(1)


def _run_out_of_memory(channel: FrameChannel) -> None:
    """Unless it saves all it can."""
    if SEQUENTIAL_OFFLOAD in _savings:
        return
    details = {"requested_bytes": 3 * 2**30, "free_bytes": 2**30, "total_bytes": 8 * 2**30, "peak_bytes": 7 * 2**30}
    channel.send(
        StepFailed(code="oom", message="Too large.", details=details, suggestions=["Smaller."], peak_memory=7 * 2**30)
    )
    assert isinstance(channel.receive(), Acknowledge)
    os._exit(1)


def _be_killed(_: FrameChannel) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _take_a_lot_of_memory(_: FrameChannel) -> None:
    taken: list[bytearray] = []
    for _turn in range(64):
        taken.append(bytearray(64 * 1024 * 1024))
        # What was never written to is not there.
        taken[-1][::4096] = b"x" * (64 * 256)
    os._exit(9)


def _write_a_lot(_: FrameChannel) -> None:
    line = b"all work and no play\n" * 50_000
    for _turn in range(1000):
        os.write(2, line)
    os.write(2, b"the end\n")
    os._exit(5)


def _say_nothing(_: FrameChannel) -> None:
    time.sleep(600)


def _draw_slowly(channel: FrameChannel) -> None:
    """Drawing on, hearing of a stop as runners do: between two steps."""
    while True:
        channel.send(Progress(item_index=1, stage=Stage.DENOISE, stage_progress=0.5))
        if channel.has_news():
            assert isinstance(channel.receive(), Stop)
            channel.send(_cancelled())
            assert isinstance(channel.receive(), Acknowledge)
            os._exit(1)
        time.sleep(0.1)


def _draw_and_hear_nothing(channel: FrameChannel) -> None:
    while True:
        channel.send(Progress(item_index=1, stage=Stage.DENOISE, stage_progress=0.5))
        time.sleep(0.1)


def _finish_when_told_to_stop(channel: FrameChannel) -> None:
    """An image that was as good as done."""
    while not channel.has_news():
        time.sleep(0.05)
    assert isinstance(channel.receive(), Stop)
    channel.send(_image(1, seed=_SECOND_SEED))
    channel.send(_cancelled())
    assert isinstance(channel.receive(), Acknowledge)
    os._exit(1)


def _draw_backwards(channel: FrameChannel) -> None:
    """Of a batch of four whose seeds begin at 5."""
    for index in reversed(range(4)):
        channel.send(_image(index, seed=5 + index))
    time.sleep(600)


_DEEDS: dict[str, Callable[[FrameChannel], None]] = {
    deed.__name__.lstrip("_"): deed
    for deed in (
        _exit_well,
        _exit_badly,
        _segfault,
        _hold_the_gil,
        _stand_still,
        _ignore_sigterm,
        _garbage,
        _huge_frame,
        _close_the_socket,
        _leave_a_grandchild,
        _leave_a_fork,
        _be_ready_again,
        _talk_without_end,
        _draw_twice_when_told_to_stop,
        _lie,
        _run_out_of_memory,
        _be_killed,
        _take_a_lot_of_memory,
        _write_a_lot,
        _say_nothing,
        _draw_slowly,
        _draw_and_hear_nothing,
        _finish_when_told_to_stop,
        _draw_backwards,
    )
}


def rogue(deed: str, *, draws: int = 1) -> tuple[str, ...]:
    """The command of a runner that draws some images and then does the deed; `draw` does none."""
    assert deed == "draw" or deed in _DEEDS
    return (sys.executable, __file__, deed, str(draws))


def _raw(data: bytes) -> None:
    """Send what no channel would."""
    os.write(int(sys.argv[3]), data)


def _image(index: int, *, seed: int) -> ItemDrawn:
    pixels = bytes([127]) * (_SIDE * _SIDE * 3)
    return ItemDrawn(item_index=index, seed=seed, width=_SIDE, height=_SIDE, timings={"denoise": 0.01}, pixels=pixels)


def _cancelled() -> StepFailed:
    return StepFailed(code="cancelled", message="The step was cancelled.", details={}, suggestions=[], peak_memory=None)


def _main(deed: str, draws: int, descriptor: int) -> None:
    channel = FrameChannel(socket.socket(fileno=descriptor))
    prepare = channel.receive()
    assert isinstance(prepare, PrepareStep)
    _savings.extend(prepare.savings)
    channel.send(Ready(pid=os.getpid(), versions={}, device_name="none"))
    channel.send(ModelLoaded(seconds=0.0, dtype="float32"))
    drawn = 0
    while isinstance(message := channel.receive(), BeginItems):
        for index, seed in zip(message.item_indexes, message.seeds, strict=True):
            if deed != "draw" and (drawn == draws or (deed in _AGAIN and index >= draws)):
                _DEEDS[deed](channel)
            channel.send(_image(index, seed=seed))
            drawn += 1
    assert isinstance(message, EndOfItems)
    channel.send(StepDone(peak_memory=None))
    assert isinstance(channel.receive(), Acknowledge)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
