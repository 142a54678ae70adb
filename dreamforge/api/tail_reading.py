"""One client's way through a job's events: history from Postgres, then what the tail brings. Each once, in order."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence

from dreamforge.api.sse import Frame
from dreamforge.api.tail import BATCH, STIR_SHARE, Page, StreamBroken, Tail
from dreamforge.errors import DatabaseUnavailable

_AWAY_SECONDS = 1.0


class Reading:
    """Begins behind ``page``'s place with what is on it, and ends when the job is over and all has been read.

    The events are dense, so the place is all there is to know: what follows it comes from the tail's channel, or from
    Postgres when the channel does not reach back so far. Joining the two can neither skip nor repeat.
    """

    def __init__(
        self, *, tail: Tail, job_id: uuid.UUID, after: int, page: Page, fits: Callable[[Frame], bool] = lambda _: True
    ) -> None:
        self._tail = tail
        self._job_id = job_id
        self._seq = after
        self._page: Page | None = page
        self._fits = fits
        # Looked at by the stir, which may come so much later.
        self._silence = tail.rules.keep_alive * (1 - STIR_SHARE)
        self._silent_until = 0.0
        self._is_over = False

    async def batches(self) -> AsyncGenerator[Sequence[Frame]]:
        """The events, some at a time; none after so much silence that a sign of life is due.

        Raises ``StreamBroken`` when the replica leaves or the job is deleted.
        """
        self._heard()
        while True:
            async with contextlib.aclosing(self._history()) as history:
                async for frames in history:
                    yield frames
            if self._is_over:
                return
            async with contextlib.aclosing(self._live()) as live:
                async for frames in live:
                    yield frames
            if self._is_over:
                return
            # The channel has gone on without this reader.

    async def _history(self) -> AsyncGenerator[Sequence[Frame]]:
        """Pages, up to one that is the last. Leaves ``_is_over``: that page said so, of the same moment."""
        while True:
            # Held by nobody else: what is read takes memory until it is handed over.
            page, self._page = self._page, None
            while page is None:
                page = await self._next_page()
                if page is None and self._is_silent:
                    yield self._heard()
            if self._seq > page.last_seq or (self._seq < page.last_seq and not page.frames):
                raise StreamBroken(f"the job's last event is {page.last_seq}, and nothing follows {self._seq}")
            if frames := self._taken(page.frames):
                yield frames
            if self._seq == page.last_seq:
                self._is_over = page.is_terminal
                return

    async def _live(self) -> AsyncGenerator[Sequence[Frame]]:
        """What the tail brings, until the job is over or the channel no longer reaches back to this reader."""
        with self._tail.watch(self._job_id, seq=self._seq) as channel:
            while (behind := channel.behind(self._seq, most=BATCH)) is not None:
                if frames := self._taken(behind):
                    yield frames
                elif self._is_silent:
                    yield self._heard()
                elif not behind:
                    if channel.is_over_at(self._seq):
                        self._is_over = True
                        return
                    await channel.wait()
                self._tail.check()

    async def _next_page(self) -> Page | None:
        self._tail.check()
        try:
            page = await self._tail.page(self._job_id, after=self._seq)
        except DatabaseUnavailable:
            await asyncio.sleep(_AWAY_SECONDS)
            return None
        if page is None:
            raise StreamBroken("the job was deleted")
        return page

    def _taken(self, frames: Sequence[Frame]) -> Sequence[Frame]:
        """Move on behind ``frames``; those of them that are wanted."""
        if frames:
            if frames[0].seq != self._seq + 1:
                raise StreamBroken(f"event {frames[0].seq} of job {self._job_id} does not follow {self._seq}")
            self._seq = frames[-1].seq
        wanted = [frame for frame in frames if self._fits(frame)]
        if wanted:
            self._heard()
        return wanted

    @property
    def _is_silent(self) -> bool:
        return asyncio.get_running_loop().time() >= self._silent_until

    def _heard(self) -> Sequence[Frame]:
        """Something is being sent: the silence begins anew."""
        self._silent_until = asyncio.get_running_loop().time() + self._silence
        return ()
