"""The conversation with the runner: a credit for each batch, progress and pixels in return."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from dreamforge.errors import Cancelled, RunnerStalled
from dreamforge.jobs.channel import ChannelClosed, FrameChannel
from dreamforge.jobs.events import ItemProgress, ItemStarted, ModelLoaded, ModelLoading, RunnerLog, RunnerWarning
from dreamforge.jobs.frames import (
    Acknowledge,
    BeginItems,
    EndOfItems,
    FrameError,
    ItemDrawn,
    Log,
    Message,
    PrepareStep,
    Progress,
    Ready,
    StepDone,
    StepFailed,
    Stop,
)
from dreamforge.jobs.frames import ModelLoaded as ModelLoadedFrame
from dreamforge.jobs.progress import Stage, item_progress
from dreamforge.jobs.seeds import item_seed
from dreamforge.store.step_calls import StepCall, StepItem
from dreamforge.worker.encoding import Origin
from dreamforge.worker.halt import Halt
from dreamforge.worker.journal import Journal
from dreamforge.worker.saving import ImageSaver

PROGRESS_INTERVAL = 0.25
"""Seconds between two progress events of an item."""
MOST_LOG_LINES = 500
"""Lines of a runner that are kept; each is written under the job's lock."""
_POLL_SECONDS = 0.5


class Drawing:
    """One attempt's conversation. ``halt`` is looked at at least twice a second; the saver, which makes it wait, does
    the same. A runner that says nothing for ``stall_timeout`` seconds while it is waited for has stalled.
    """

    def __init__(
        self,
        *,
        channel: FrameChannel,
        journal: Journal,
        saver: ImageSaver,
        origin: Callable[[Ready], Origin],
        call: StepCall,
        halt: Halt,
        has_ended: Callable[[], bool],
        stall_timeout: float,
        draw_seed: Callable[[int], int],
    ) -> None:
        self._channel = channel
        self._journal = journal
        self._saver = saver
        self._origin_of = origin
        self._origin: Origin | None = None
        self._call = call
        self._halt = halt
        self._has_ended = has_ended
        self._stall_timeout = stall_timeout
        self._draw_seed = draw_seed
        self._waiting = list(call.items)
        self._current: list[tuple[int, int]] = []
        self._progress_at: dict[int, float] = {}
        self._begun = 0
        self._is_loading = True
        self._is_told_to_stop = False
        self._log_lines = 0

    def run(self, prepare: PrepareStep) -> StepDone | StepFailed:
        """Have every missing item drawn and stored; the runner's last word, acknowledged.

        Raises ``ChannelClosed`` when the runner has gone, ``FrameError`` when it speaks nonsense, ``RunnerStalled``
        when it is silent for too long, and whatever ``halt`` or saving raises.
        """
        self._channel.send(prepare)
        while True:
            message = self._next()
            if isinstance(message, StepDone | StepFailed):
                self._saver.finish()
                with contextlib.suppress(ChannelClosed):
                    # A runner that has said its last word is free to go.
                    self._channel.send(Acknowledge())
                return message
            self._answer(message)

    def _next(self) -> Message:
        # Time that was spent on saving is not the runner's silence.
        waiting_since = time.monotonic()
        while True:
            self._halt.check()
            self._tell_to_stop()
            # Asked for first: what it had sent before its end is received all the same.
            has_ended = self._has_ended()
            with contextlib.suppress(TimeoutError):
                return self._channel.receive(timeout=_POLL_SECONDS)
            if has_ended:
                # A child of its own may hold the channel open.
                raise ChannelClosed
            if time.monotonic() - waiting_since >= self._stall_timeout:
                raise RunnerStalled(details={"seconds": self._stall_timeout})

    def _tell_to_stop(self) -> None:
        if self._is_told_to_stop or not self._halt.must_stop:
            return
        if self._is_loading:
            # It would hear of it when the model is there: nothing is lost by ending it at once.
            raise Cancelled
        self._is_told_to_stop = True
        self._channel.send(Stop())

    def _answer(self, message: Message) -> None:
        match message:
            case Ready() if self._origin is None:
                self._origin = self._origin_of(message)
                self._journal.record(ModelLoading(model=self._model_name))
            case ModelLoadedFrame(seconds=seconds, dtype=dtype) if self._is_loading and self._origin is not None:
                self._is_loading = False
                self._origin = replace(self._origin, dtype=dtype)
                self._journal.record(ModelLoaded(model=self._model_name, seconds=round(seconds, 4)))
                self._begin_next()
            case Progress():
                self._record_progress(message)
            case ItemDrawn():
                self._take(message)
            case Log():
                self._record_log(message)
            case (
                Ready()
                | ModelLoadedFrame()
                | StepDone()
                | StepFailed()
                | PrepareStep()
                | BeginItems()
                | EndOfItems()
                | Stop()
                | Acknowledge()
            ):
                raise FrameError(f"the runner sent {message.type} out of turn")
            case _:
                assert_never(message)

    @property
    def _model_name(self) -> str:
        return self._call.model.name if self._call.model else ""

    def _begin_next(self) -> None:
        if not self._waiting:
            self._channel.send(EndOfItems())
            return
        size = self._call.batch_size
        batch, self._waiting = self._waiting[:size], self._waiting[size:]
        self._current = [(item.index, self._seed_of(item)) for item in batch]
        self._progress_at = {}
        for index, seed in self._current:
            # Nobody sees the image begin before its seed is written: an attempt that takes over draws the same one.
            self._journal.begin_item(ItemStarted(item_index=index, seed=seed))
        indexes, seeds = zip(*self._current, strict=True)
        self._channel.send(BeginItems(item_indexes=list(indexes), seeds=list(seeds)))
        self._begun = len(self._current)

    def _seed_of(self, item: StepItem) -> int:
        if item.seed is not None:
            return item.seed
        return item_seed(self._call.params["seed"], item_index=item.index, draw=self._draw_seed)

    def _take(self, drawn: ItemDrawn) -> None:
        if self._origin is None or not self._current or self._current[0] != (drawn.item_index, drawn.seed):
            raise FrameError("the runner sent an image that was not asked for")
        del self._current[0]
        self._saver.save(drawn, replace(self._origin, batch_size=self._begun))
        # Those that finished before it heard of the stop: the images stay, and no others are begun.
        if not self._current and not self._is_told_to_stop:
            self._begin_next()

    def _record_log(self, line: Log) -> None:
        self._log_lines += 1
        if self._log_lines > MOST_LOG_LINES:
            return
        kind = RunnerWarning if line.level in {"warning", "error"} else RunnerLog
        self._journal.record(kind(message=line.message[:2000]))
        if self._log_lines == MOST_LOG_LINES:
            self._journal.record(RunnerWarning(message=f"More than {MOST_LOG_LINES} lines: the rest is not kept."))

    def _record_progress(self, message: Progress) -> None:
        index = message.item_index
        if index not in dict(self._current):
            raise FrameError("progress of an item that was not begun")
        now = time.monotonic()
        if now - self._progress_at.get(index, -PROGRESS_INTERVAL) < PROGRESS_INTERVAL:
            return
        self._progress_at[index] = now
        stage = Stage(message.stage)
        self._journal.record_progress(
            ItemProgress(
                item_index=index,
                stage=stage,
                stage_progress=round(message.stage_progress, 4),
                progress=item_progress(stage, message.stage_progress),
            )
        )
