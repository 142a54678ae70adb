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

        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._stall):
                    await send(message)
            except TimeoutError as error:
                raise StreamBroken(f"the reader took nothing for {self._stall:g} s") from error

        try:
            await super().__call__(scope, receive, send_in_time)
        except StreamBroken as error:
            log.info("a stream was broken off", extra={"reason": str(error)})
        finally:
            # Cancelled between two chunks, it would be closed by the garbage collector, some time.
            await self._chunks.aclose()
