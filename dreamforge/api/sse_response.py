"""The answer that goes on: completed when what it tells of is over, broken off otherwise."""

import asyncio
import logging
from collections.abc import AsyncGenerator

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from dreamforge.api.tail import StreamBroken

log = logging.getLogger(__name__)

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class LiveResponse(StreamingResponse):
    """Sends what ``chunks`` yields as it comes.

    A client that leaves ends ``chunks`` at once. One that takes nothing for ``stall`` seconds is given up, and so is
    every client when ``chunks`` raises ``StreamBroken``: the answer stays incomplete, by which a client knows that
    there is more, and resumes. Nothing is held for it here any longer but what the connection has to send: the server
    closes it when that is taken, and the edge hangs up on whoever never does (``CLIENT_SECONDS`` there).
    """

    def __init__(self, chunks: AsyncGenerator[bytes], *, media_type: str, stall: float) -> None:
        super().__init__(chunks, media_type=media_type, headers=_HEADERS)
        self._chunks = chunks
        self._stall = stall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Returns without the answer's end when it is broken off; the server then closes the connection.

        It does so once what was sent before has been taken, for which it has no time limit of its own.
        """

        guard = StallGuard(send, stall=self._stall)
        try:
            await super().__call__(scope, receive, guard.send)
        except StreamBroken as error:
            log.info("a stream was broken off", extra={"reason": str(error)})
        finally:
            guard.end()
            # Cancelled between two chunks, it would be closed by the garbage collector, some time.
            await self._chunks.aclose()


class StallGuard:
    """Gives up a send that takes longer than ``stall`` seconds, as `asyncio.timeout` would around each.

    With one timer for all of them: nearly every send is over at once, and a timer of its own costs as much again.
    """

    def __init__(self, send: Send, *, stall: float) -> None:
        self._send = send
        self._stall = stall
        self._loop = asyncio.get_running_loop()
        self._began: float | None = None
        self._task: asyncio.Task[object] | None = None
        self._is_over = False
        self._timer = self._loop.call_later(stall, self._look)

    async def send(self, message: Message) -> None:
        """Send it. Raises ``StreamBroken`` when it takes too long."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can be given up")
        before = task.cancelling()
        self._task, self._began = task, self._loop.time()
        try:
            await self._send(message)
        except asyncio.CancelledError:
            # Not when somebody else cancels the task as well.
            if self._is_over and self._take_back(task) <= before:
                raise StreamBroken(f"the reader took nothing for {self._stall:g} s") from None
            raise
        finally:
            self._task = self._began = None
            if self._is_over:
                # Our cancel became another error on its way, or none.
                self._take_back(task)

    def _take_back(self, task: asyncio.Task[object]) -> int:
        """Undo our cancel; how many of others there are."""
        self._is_over = False
        self._timer = self._loop.call_later(self._stall, self._look)
        return task.uncancel()

    def end(self) -> None:
        """Look after nothing any more."""
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        if self._task is not None and self._began is not None and now - self._began >= self._stall:
            self._is_over = True
            self._task.cancel()
            return
        self._timer = self._loop.call_at((self._began or now) + self._stall, self._look)
