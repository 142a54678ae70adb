"""The runner's side of the conversation: prepare, draw on credit, report, leave."""

import os
import sys
import time
import traceback
import warnings

import diffusers
import torch
import transformers

from dreamforge.errors import Cancelled, GpuError
from dreamforge.jobs.channel import ChannelClosed, FrameChannel
from dreamforge.jobs.frames import (
    Acknowledge,
    BeginItems,
    EndOfItems,
    FrameError,
    Log,
    Message,
    ModelLoaded,
    PrepareStep,
    Progress,
    Ready,
    StepDone,
    StepFailed,
    Stop,
)
from dreamforge.jobs.progress import Stage
from dreamforge.runners.failures import failure_of
from dreamforge.runners.protocol import Runner
from dreamforge.runners.sdxl import SdxlRunner

RUNNERS: dict[str, type[Runner]] = {"sdxl": SdxlRunner}
"""By the model's kind."""


def converse(channel: FrameChannel, *, remark: str | None = None) -> bool:
    """Run one step; True when every item was drawn. Raises ``ChannelClosed`` when the supervisor has gone."""
    _quieten()
    call = _call(channel)
    last = _run(channel, call, remark=remark)
    channel.send(last)
    _await_acknowledgement(channel)
    return isinstance(last, StepDone)


def _run(channel: FrameChannel, call: PrepareStep, *, remark: str | None) -> StepDone | StepFailed:
    try:
        channel.send(_ready(call))
        if remark:
            channel.send(Log(level="debug", message=remark))
        runner = RUNNERS[call.model_kind](emit=lambda message: _emit(channel, message))
        began = time.monotonic()
        dtype = runner.prepare(call)
        channel.send(ModelLoaded(seconds=time.monotonic() - began, dtype=dtype))
        while isinstance(message := _credit(channel), BeginItems):
            for drawn in runner.run_step(message):
                channel.send(drawn)
        return StepDone(peak_memory=runner.cleanup())
    except ChannelClosed:
        raise
    except Cancelled as error:
        return failure_of(error, call)
    except Exception as error:  # noqa: BLE001 - the edge: whatever happened becomes a report
        traceback.print_exc(file=sys.stderr)
        return failure_of(error, call)


def _emit(channel: FrameChannel, message: Message) -> None:
    """Send it, and see whether to go on: runners emit between any two steps of denoising."""
    channel.send(message)
    if isinstance(message, Progress) and message.stage == Stage.DECODE:
        # The images are as good as done, and stay. Before the next ones a stop is heard.
        return
    if channel.has_news():
        # There is no credit while items are drawn.
        _stop_or_raise(channel.receive())


def _credit(channel: FrameChannel) -> BeginItems | EndOfItems:
    message = channel.receive()
    if isinstance(message, Stop):
        raise Cancelled
    if not isinstance(message, BeginItems | EndOfItems):
        raise FrameError(f"expected a credit, not {message.type}")
    return message


def _stop_or_raise(message: Message) -> None:
    if isinstance(message, Stop):
        raise Cancelled
    raise FrameError(f"expected nothing but a stop, not {message.type}")


def _call(channel: FrameChannel) -> PrepareStep:
    message = channel.receive()
    if not isinstance(message, PrepareStep):
        raise FrameError(f"expected a step, not {message.type}")
    return message


def _await_acknowledgement(channel: FrameChannel) -> None:
    # However long it takes to store the last image; without a supervisor the channel is closed. A stop that was on
    # its way comes first.
    while not isinstance(channel.receive(), Acknowledge):
        continue


def _ready(call: PrepareStep) -> Ready:
    versions = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
    return Ready(pid=os.getpid(), versions=versions, device_name=_device_name(call.device))


def _device_name(device: str) -> str:
    if device != "cuda":
        return device
    if not torch.cuda.is_available():
        raise GpuError("Torch sees no GPU on this node.")
    return torch.cuda.get_device_name()


def _quieten() -> None:
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
