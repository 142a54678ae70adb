"""Giving up a reader that takes nothing, as `asyncio.timeout` around each send would."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
from starlette.types import Message

from dreamforge.api.sse_response import LiveResponse, StallGuard
from dreamforge.api.tail import StreamBroken
from tests.unit.test_tail_pace import ClockLoop

STALL = 0.05
BODY: Message = {"type": "http.response.body", "body": b"x"}


async def _never(_: Message) -> None:
    await asyncio.Event().wait()


def _guarded(send: Callable[[Message], Awaitable[None]], what: Callable[[StallGuard], Awaitable[None]]) -> None:
    async def play() -> None:
        guard = StallGuard(send, stall=STALL)
        try:
            async with asyncio.timeout(30):
                await what(guard)
        finally:
            guard.end()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0, "no cancel of ours is left behind"

    # By a clock that goes where nobody has anything to do: what is due at one time comes in one turn of the loop.
    with asyncio.Runner(loop_factory=ClockLoop) as runner:
        runner.run(play())


def test_one_that_takes_nothing_is_given_up() -> None:
    async def send(guard: StallGuard) -> None:
        with pytest.raises(StreamBroken, match=r"took nothing for 0\.05 s"):
            await guard.send(BODY)

    _guarded(_never, send)


def test_one_that_takes_a_little_at_a_time_is_not() -> None:
    taken: list[Message] = []

    async def take(message: Message) -> None:
        await asyncio.sleep(STALL / 2)
        taken.append(message)

    async def send(guard: StallGuard) -> None:
        for _ in range(6):
            await guard.send(BODY)

    _guarded(take, send)
    assert len(taken) == 6


def test_a_cancel_of_somebody_else_s_stays_one() -> None:
    async def send(guard: StallGuard) -> None:
        sending = asyncio.create_task(guard.send(BODY))
        await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

    _guarded(_never, send)


def test_a_cancel_of_somebody_else_s_at_the_same_moment_wins() -> None:
    async def send(guard: StallGuard) -> None:
        sending = asyncio.create_task(guard.send(BODY))
        # Both in one turn of the loop, ours first.
        asyncio.get_running_loop().call_later(STALL, sending.cancel)
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert sending.cancelled()

    _guarded(_never, send)


@pytest.mark.parametrize("turns_into", [OSError, None])
def test_a_send_that_makes_something_else_of_it_leaves_no_cancel_and_the_next_is_watched(
    turns_into: type[Exception] | None,
) -> None:
    async def convert(_: Message) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if turns_into is not None:
                raise turns_into from None

    async def send(guard: StallGuard) -> None:
        for _ in range(2):
            try:
                await guard.send(BODY)
            except OSError:
                assert turns_into is OSError

    _guarded(convert, send)


def test_a_stalled_answer_is_broken_off_and_its_source_closed() -> None:
    closed = asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            closed.set()

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await _never(message)

    async def play() -> None:
        async with asyncio.timeout(30):
            await LiveResponse(chunks(), media_type="text/plain", stall=STALL)({"type": "http"}, receive, send)

    asyncio.run(play())
    assert closed.is_set()
