"""One step in the real runner's process, with a stop watch."""

import hashlib
import io
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from PIL import Image

from dreamforge.errors import OutOfMemory
from dreamforge.jobs.channel import ChannelClosed, FrameChannel
from dreamforge.jobs.frames import (
    Acknowledge,
    BeginItems,
    EndOfItems,
    ItemDrawn,
    Message,
    ModelLoaded,
    PrepareStep,
    Ready,
    StepDone,
    StepFailed,
)
from dreamforge.jobs.progress import Stage
from tests.gpu.program import ProgramFailed, start, tail

_PATIENCE = 300.0
"""Seconds without a word, after which a runner is given up."""
_EXIT_SECONDS = 60.0
_LEAST_COLOURS = 50
"""Values of a channel, out of 256, that noise has at the least."""
Kind = TypeVar("Kind", bound=Message)


class StepRefused(Exception):
    """The runner gave up, and said why."""

    def __init__(self, failed: StepFailed, output: str) -> None:
        # What is foreseen speaks for itself; of the rest the trace is in the output.
        trace = "" if failed.code == OutOfMemory.code else f"\n{output}"
        super().__init__(f"{failed.code}: {failed.message} {failed.details}{trace}")
        self.failed = failed


@dataclass(frozen=True)
class Loading:
    """From nothing to a model on its device: ``start_s`` until the process is up, ``load_s`` for the model."""

    start_s: float
    load_s: float
    dtype: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Drawn:
    """Some images that were denoised together.

    ``seconds`` are from the credit until the last one's pixels are here, ``encode_s`` what it takes to make files of
    them, ``timings`` the runner's own, by stage.
    """

    seconds: float
    encode_s: float
    timings: dict[str, float]
    digests: list[str]
    is_flat: bool

    @property
    def image_s(self) -> float:
        """Seconds an image, the file included."""
        return (self.seconds + self.encode_s) / len(self.digests)

    @property
    def outside(self) -> float:
        """The share of time outside denoising."""
        return 1 - self.timings[Stage.DENOISE] / (self.seconds + self.encode_s)


class Step:
    """A runner's process, from ``with`` to the end of the block; none is left behind it.

    ``load``, ``draw`` as often as wanted, ``finish``. All raise ``StepRefused`` when the runner gives up, and
    ``ProgramFailed`` when it just ends.
    """

    def __init__(self, call: PrepareStep) -> None:
        self._call = call

    def __enter__(self) -> Self:
        self._output = tempfile.TemporaryFile()
        ours, theirs = socket.socketpair()
        self._began = time.monotonic()
        with theirs:
            descriptor = theirs.fileno()
            self._process = start(
                "dreamforge.runners.process",
                str(descriptor),
                str(os.getpid()),
                output=self._output,
                inherited=[descriptor],
            )
        self._channel = FrameChannel(ours)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._channel.close()
        self._output.close()

    def load(self) -> Loading:
        """Have the model loaded."""
        self._send(self._call)
        ready = self._until(Ready)
        start_s = time.monotonic() - self._began
        loaded = self._until(ModelLoaded)
        return Loading(start_s=start_s, load_s=loaded.seconds, dtype=loaded.dtype, versions=ready.versions)

    def draw(self, seeds: Sequence[int]) -> Drawn:
        """Have images drawn together, one for each seed, and make files of them."""
        began = time.monotonic()
        self._send(BeginItems(item_indexes=list(range(len(seeds))), seeds=list(seeds)))
        images = [self._until(ItemDrawn) for _ in seeds]
        seconds = time.monotonic() - began
        began = time.monotonic()
        for image in images:
            _png(image)
        return Drawn(
            seconds=seconds,
            encode_s=time.monotonic() - began,
            timings={stage: sum(image.timings[stage] for image in images) for stage in images[0].timings},
            digests=[hashlib.sha256(image.pixels).hexdigest() for image in images],
            is_flat=any(len(set(image.pixels)) < _LEAST_COLOURS for image in images),
        )

    def finish(self) -> StepDone:
        """Have it leave."""
        self._send(EndOfItems())
        done = self._until(StepDone)
        self._leave()
        return done

    def _leave(self) -> None:
        self._send(Acknowledge())
        self._process.wait(_EXIT_SECONDS)

    def _send(self, message: Message) -> None:
        try:
            self._channel.send(message)
        except ChannelClosed as error:
            raise self._ended() from error

    def _until(self, kind: type[Kind]) -> Kind:
        while True:
            try:
                message = self._channel.receive(timeout=_PATIENCE)
            except ChannelClosed as error:
                raise self._ended() from error
            if isinstance(message, kind):
                return message
            if isinstance(message, StepFailed):
                self._leave()
                raise StepRefused(message, tail(self._output))

    def _ended(self) -> ProgramFailed:
        return ProgramFailed(f"the runner ended with {self._process.wait(_EXIT_SECONDS)}: {tail(self._output)}")


def _png(image: ItemDrawn) -> bytes:
    # As `dreamforge.images.encode` does it, whose other half takes more than a bare machine has.
    stream = io.BytesIO()
    Image.frombytes("RGB", (image.width, image.height), image.pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
