"""Streams as the clients hear them: server-sent events over httpx2, one open stream at a time."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from types import TracebackType
from typing import Self

import httpx2
from pydantic import ValidationError

from dreamforge.api.schemas import StreamEvent
from dreamforge.client.calls import error_of
from dreamforge.client.errors import ClientError, UnexpectedAnswer
from dreamforge.client.flows import Heard, Listen
from dreamforge.client.wire import Wire


class Ear:
    """Performs ``Listen`` for a blocking client, from ``with`` to the end of the block."""

    def __init__(self, http: httpx2.Client, wire: Wire) -> None:
        self._http = http
        self._wire = wire
        self._open = ExitStack()
        self._events: Iterator[httpx2.ServerSentEvent] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def hear(self, listen: Listen) -> StreamEvent | Heard | ClientError:
        """What is heard next; returns when there is something."""
        url = self._wire.url_of(listen.path)
        try:
            heard = self._begin(url, listen) if self._events is None else self._next(url, self._events)
        except httpx2.SSEError as error:
            heard = _no_stream(url, error)
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            heard = self._wire.unreachable(error)
        if not isinstance(heard, StreamEvent) and heard is not Heard.OPENED:
            self._close()
        return heard

    def _begin(self, url: str, listen: Listen) -> Heard | ClientError:
        opening = self._http.sse(url, headers=_headers(listen), timeout=self._wire.stream_timeout)
        source = self._open.enter_context(opening)
        status = source.response.status_code
        if status == 200:
            if not _is_stream(source.response):
                return UnexpectedAnswer(url, status=status)
            self._events = iter(source)
            return Heard.OPENED
        return Heard.OVER if status == 204 else error_of(url, status, source.response.read())

    @staticmethod
    def _next(url: str, events: Iterator[httpx2.ServerSentEvent]) -> StreamEvent | Heard | ClientError:
        for event in events:
            if event.data:
                return _parsed(url, event)
        return Heard.ENDED

    def _close(self) -> None:
        self._events = None
        self._open.close()


class AsyncEar:
    """The same for an async client."""

    def __init__(self, http: httpx2.AsyncClient, wire: Wire) -> None:
        self._http = http
        self._wire = wire
        self._open = AsyncExitStack()
        self._events: AsyncIterator[httpx2.ServerSentEvent] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._close()

    async def hear(self, listen: Listen) -> StreamEvent | Heard | ClientError:
        """What is heard next; returns when there is something."""
        url = self._wire.url_of(listen.path)
        try:
            heard = await (self._begin(url, listen) if self._events is None else self._next(url, self._events))
        except httpx2.SSEError as error:
            heard = _no_stream(url, error)
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            heard = self._wire.unreachable(error)
        if not isinstance(heard, StreamEvent) and heard is not Heard.OPENED:
            await self._close()
        return heard

    async def _begin(self, url: str, listen: Listen) -> Heard | ClientError:
        opening = self._http.sse(url, headers=_headers(listen), timeout=self._wire.stream_timeout)
        source = await self._open.enter_async_context(opening)
        status = source.response.status_code
        if status == 200:
            if not _is_stream(source.response):
                return UnexpectedAnswer(url, status=status)
            self._events = aiter(source)
            return Heard.OPENED
        return Heard.OVER if status == 204 else error_of(url, status, await source.response.aread())

    @staticmethod
    async def _next(url: str, events: AsyncIterator[httpx2.ServerSentEvent]) -> StreamEvent | Heard | ClientError:
        async for event in events:
            if event.data:
                return _parsed(url, event)
        return Heard.ENDED

    async def _close(self) -> None:
        self._events = None
        await self._open.aclose()


def _headers(listen: Listen) -> dict[str, str]:
    return {"Last-Event-ID": str(listen.after)}


def _is_stream(response: httpx2.Response) -> bool:
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/event-stream"


def _no_stream(url: str, error: httpx2.SSEError) -> ClientError:
    # No vendor's word for "nobody answers", although it is one of those: asking again brings the same.
    trouble = UnexpectedAnswer(url, status=200)
    trouble.__cause__ = error
    return trouble


def _parsed(url: str, event: httpx2.ServerSentEvent) -> StreamEvent | ClientError:
    try:
        return StreamEvent.model_validate_json(event.data)
    except ValidationError:
        return UnexpectedAnswer(url, status=200)
