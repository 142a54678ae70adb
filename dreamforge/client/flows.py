"""What a client does, step by step, without doing any of it: generators that yield effects and are sent the results.

The blocking and the async client perform the effects, each in its way, as httpx does with ``Auth.auth_flow``. Retries,
pages and waiting are written here once.
"""

import errno
import os
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Never, Protocol, Self, TypeVar

from dreamforge.api.schemas import Artifact, Job, LogLine, StreamEvent
from dreamforge.client.calls import Call, JobId, LogQuery, delete_job, get_job, get_logs, stream_path
from dreamforge.client.errors import ApiError, ClientError, UnexpectedAnswer, WaitTimeout
from dreamforge.client.part import PartFile
from dreamforge.client.patience import RETRY_PAUSES, Patience, Pause, before_again
from dreamforge.jobs.job import JobStatus

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Given = TypeVar("Given")
Result = TypeVar("Result")

OVER = frozenset(status.value for status in JobStatus if status.is_terminal)
_LEAST_POLL, _MOST_POLL, _POLL_GROWTH = 0.2, 2.0, 1.5


@dataclass(frozen=True)
class Fetch:
    """Stream what is at a URL of the object store into a file."""

    url: str
    part: PartFile


@dataclass(frozen=True)
class Listen:
    """Hear the next event of a stream: of the one that is open, else of a new one behind the ``seq`` ``after``.

    The answer is the ``StreamEvent``, or a ``Heard``. After an error no stream is open.
    """

    path: str
    after: int


class Heard(Enum):
    """What there is to hear of a stream besides its events."""

    OPENED = auto()
    ENDED = auto()
    """The answer is complete."""
    OVER = auto()
    """The job is over, and there is nothing behind the place: no stream was opened."""


@dataclass(frozen=True)
class Give(Generic[T_co]):
    """Hand a value to whoever iterates."""

    value: T_co


Effect = Call[Any] | Pause | Fetch | Listen
Flow = Generator[Effect | Give[T], Any, Result]


class Course(Generic[T, Result]):
    """A flow on its way: perform ``effect`` and ``answer`` it, until there is none; then there is a ``result``."""

    def __init__(self, flow: Flow[T, Result]) -> None:
        self._flow = flow
        self.effect: Effect | Give[T] | None = None
        self._result: list[Result] = []

    def __enter__(self) -> Self:
        self.answer(None)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._flow.close()

    def answer(self, value: object) -> None:
        """Go on to the next effect. An error is raised where the flow waits, which may catch it."""
        try:
            self.effect = self._flow.throw(value) if isinstance(value, ClientError) else self._flow.send(value)
        except StopIteration as end:
            self.effect = None
            self._result.append(end.value)

    @property
    def result(self) -> Result:
        """What the flow returned."""
        return self._result[0]


def answered(call: Call[T], *, pauses: Iterable[float] = RETRY_PAUSES) -> Flow[Never, T]:
    """Make a call, and again after each pause while it may be repeated and the trouble may pass."""
    for pause in pauses:
        try:
            return (yield call)
        except ClientError as error:
            if not (call.is_idempotent and error.is_passing):
                raise
            length = _length(pause, call, error)
        yield before_again(length)
    return (yield call)


def _answered_in_time(call: Call[T], *, now: Callable[[], float], until: float | None = None) -> Flow[Never, T]:
    """Make a call that reads, and again while the trouble may pass and there is patience; ``until`` is a time."""
    patience = Patience(now=now, until=until)
    while True:
        try:
            return (yield replace(call, most=patience.left))
        except ClientError as error:
            if not error.is_passing or (pause := patience.pause()) is None:
                raise
        yield pause


def _length(pause: float, call: Call[Any], error: ClientError) -> float:
    # What is written is worth waiting for as long as the service says; who reads is told soon.
    asked = error.retry_after if call.writes and isinstance(error, ApiError) else None
    return max(pause, asked or 0.0)


def deleted(job_id: JobId) -> Flow[Never, None]:
    """The job's deletion; a job that is not there any more once it was asked for again was deleted by then."""
    call = delete_job(job_id)
    for pause in RETRY_PAUSES:
        try:
            return (yield call)
        except ClientError as error:
            if not error.is_passing:
                raise
            length = _length(pause, call, error)
        yield before_again(length)
        call = replace(call, answers=frozenset({404}))
    return (yield call)


class Page(Protocol[T_co]):
    """A page of any list."""

    @property
    def items(self) -> Iterable[T_co]:
        """What is on it."""
        ...

    @property
    def next_cursor(self) -> str | None:
        """Where the next one begins."""
        ...


def paged(page: Callable[[str | None], Call[Page[T]]]) -> Flow[T, None]:
    """Everything of a list, page by page. ``page`` makes the call for a cursor."""
    cursor = None
    while True:
        answer: Page[T] = yield from answered(page(cursor))
        for item in answer.items:
            yield Give(item)
        cursor = answer.next_cursor
        if cursor is None:
            return


def watched(job_id: JobId, *, timeout: float | None, now: Callable[[], float]) -> Flow[Job, Job]:
    """The job, again and again until it is over: often while it changes, more rarely while it does not."""
    until = None if timeout is None else now() + timeout
    pause, before, status = _LEAST_POLL, None, None
    while True:
        try:
            job: Job = yield from _answered_in_time(get_job(job_id), now=now, until=until)
        except ClientError as error:
            if timeout is None or until is None or now() < until or not error.is_passing:
                raise
            raise WaitTimeout(str(job_id), status=status, seconds=timeout) from error
        yield Give(job)
        if job.status in OVER:
            return job
        status = job.status
        if timeout is not None and until is not None and now() >= until:
            raise WaitTimeout(str(job.id), status=status, seconds=timeout)
        pause = _LEAST_POLL if job.updated_at != before else min(pause * _POLL_GROWTH, _MOST_POLL)
        before = job.updated_at
        yield Pause(pause if until is None else min(pause, max(0.0, until - now())))


def waited(job_id: JobId, *, timeout: float | None, now: Callable[[], float]) -> Flow[Never, Job]:
    """The job once it is over."""
    watching = watched(job_id, timeout=timeout, now=now)
    return (yield from _regifted(watching, lambda _: None))


def _regifted(flow: Flow[T, Result], gift: Callable[[T], Given | None]) -> Flow[Given, Result]:
    """The flow with other gifts: what ``gift`` makes of each, or none for None."""
    with Course(flow) as course:
        while course.effect is not None:
            if isinstance(course.effect, Give):
                given = gift(course.effect.value)
                if given is not None:
                    yield Give(given)
                course.answer(None)
                continue
            try:
                answer = yield course.effect
            except ClientError as error:
                answer = error
            course.answer(answer)
        return course.result


def streamed(job_id: JobId, *, after: int, now: Callable[[], float]) -> Flow[StreamEvent, None]:
    """The job's events behind ``after`` as they happen, until it is over: each once and in order, whatever breaks."""
    path, patience = stream_path(job_id), Patience(now=now)
    is_fresh = True
    while True:
        try:
            heard: StreamEvent | Heard | ClientError = yield Listen(path, after)
        except ClientError as error:
            if not _may_pass(error):
                raise
            heard = error
        match heard:
            case Heard.OVER:
                return
            case Heard.OPENED:
                is_fresh = True
                patience.began()
            case Heard.ENDED | ClientError():
                patience.ended()
                # Whether that was the end is told when the stream is asked for again: at once if it brought something.
                if is_fresh or heard is not Heard.ENDED:
                    yield from _borne(patience, heard, path)
            case StreamEvent(seq=seq):
                if seq != after + 1:
                    raise UnexpectedAnswer(path, status=200)
                after, is_fresh = seq, False
                patience.renew()
                yield Give(heard)


def _borne(patience: Patience, trouble: object, path: str) -> Flow[Never, None]:
    pause = patience.pause()
    if pause is None:
        # A service of ours does not end a stream with nothing new, time and again.
        raise trouble if isinstance(trouble, ClientError) else UnexpectedAnswer(path, status=200)
    yield pause


def _may_pass(error: ClientError) -> bool:
    # A stream is only read: a replica that fails at it may be followed by one that does not.
    return error.is_passing or (isinstance(error, ApiError | UnexpectedAnswer) and error.status >= 500)


def logged(job_id: JobId, query: LogQuery, *, follow: bool, now: Callable[[], float]) -> Flow[LogLine, None]:
    """The job's events that fit ``query``; with ``follow`` also those that come, until the job is over."""
    if follow:
        streaming = streamed(job_id, after=query.after, now=now)
        yield from _regifted(streaming, lambda event: _line_of(event) if query.fits(event) else None)
        return
    lines: list[LogLine] = yield from _answered_in_time(get_logs(job_id, query), now=now)
    for line in lines:
        yield Give(line)


def _line_of(event: StreamEvent) -> LogLine:
    return LogLine(**{name: getattr(event, name) for name in LogLine.model_fields})


def downloaded(artifact: Artifact, target: Path, *, overwrite: bool) -> Flow[Never, Path]:
    """The artifact's bytes as a file, whole and checked, or not at all."""
    if target.exists() and not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    with PartFile(target) as part:
        for pause in RETRY_PAUSES:
            try:
                yield Fetch(artifact.url, part)
            except ClientError as error:
                if not error.is_passing:
                    raise
            else:
                break
            yield before_again(pause)
            part.restart()
        else:
            yield Fetch(artifact.url, part)
        part.publish(checksum=artifact.checksum, overwrite=overwrite)
    return target
