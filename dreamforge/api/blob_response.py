"""An object of the store, passed on to a client a piece at a time."""

from collections.abc import AsyncGenerator, Mapping

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from dreamforge.api.threads import Threads
from dreamforge.blobs import Blob

CHUNK = 256 * 1024
"""Bytes of an object that are in memory at a time."""


class BlobResponse(StreamingResponse):
    """Streams ``blob``, and gives its connection back however the answer ends: also when the client leaves."""

    def __init__(self, blob: Blob, *, threads: Threads, headers: Mapping[str, str]) -> None:
        super().__init__(_chunks(blob, threads), headers=headers)
        self._blob = blob
        self._threads = threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Not awaited, since this may be the end of a cancelled task; in a thread, since one that is still reading
            # from a store that does not answer holds it up.
            self._threads.leave(self._blob.close)


async def _chunks(blob: Blob, threads: Threads) -> AsyncGenerator[bytes]:
    while chunk := await threads.run(blob.read, CHUNK):
        yield chunk
