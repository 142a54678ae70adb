"""The blocking client."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Never, Self, TypeVar
from uuid import UUID

import httpx2

from dreamforge.api.schemas import Artifact, Job, LogLine, Model, Progress, Readiness, StreamEvent
from dreamforge.client import calls
from dreamforge.client.calls import Call, JobId, JobQuery, LogQuery, ModelWish
from dreamforge.client.ear import Ear
from dreamforge.client.errors import ClientError
from dreamforge.client.flows import (
    Course,
    Effect,
    Fetch,
    Flow,
    Give,
    Listen,
    answered,
    deleted,
    downloaded,
    logged,
    paged,
    streamed,
    waited,
    watched,
)
from dreamforge.client.patience import Pause
from dreamforge.client.wire import DEFAULT_URL, Wire

T = TypeVar("T")
Result = TypeVar("Result")


class Client:
    """A client of one Dream Forge, for one thread at a time.

    Usage::

        with Client("http://127.0.0.1:8700") as client:
            job = client.wait(client.submit("a lighthouse at dawn").id)

    ``timeout`` is in seconds, for each answer. Calls that may be sent twice are repeated a few times, after pauses,
    when nobody answers or a dependency of the service is away. Every method raises ``ClientError``.
    """

    def __init__(self, base_url: str = DEFAULT_URL, *, timeout: float = 30.0) -> None:
        self._wire = Wire(base_url, timeout=timeout)
        self._http = httpx2.Client(timeout=self._wire.timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(
        self,
        prompt: str,
        *,
        count: int = 1,
        model: str | None = None,
        priority: str = "normal",
        metadata: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        wait: int | None = None,
    ) -> Job:
        """Create a job of ``count`` images, 1..100.

        ``model`` is an id, a name or name@version; ``params`` are what its ``parameters_schema`` names, besides the
        prompt: `{"width": 1024, "seed": 7}`. One that is None is left to the service. The service is asked to hold its
        answer until the job is over or ``wait`` seconds, 0..60, have passed.

        It is sent again a few times when nobody answers or a dependency of the service is away, and there is one job
        all the same: each call has an idempotency key of its own, unless one is given. After ``Unreachable`` it is
        not known whether there is a job; the same call with the same ``idempotency_key`` finds out.
        """
        body = calls.job_body(
            prompt,
            count=count,
            model=model,
            priority=priority,
            metadata=metadata or {},
            options=options or {},
            params=params or {},
        )
        key = idempotency_key if idempotency_key is not None else calls.new_key()
        return self._run(answered(calls.submit_job(body, key=key, wait=wait)))

    def download_model(
        self,
        source: str,
        *,
        name: str | None = None,
        version: str | None = None,
        kind: str | None = None,
        default: bool | None = None,
        local_only: bool = False,
        priority: str = "normal",
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Have the service download a model: a job of type `model_download`, to be followed like any other.

        ``source`` is a reference, such as `hf:org/repo` or `civitai:277058@1920523`; ``kind`` what it has to be:
        `checkpoint`, `lora` or `vae`. The last events of such a job that has succeeded include `model.installed`, with
        the model's id, name and version. It is sent again as by ``submit``.
        """
        wish = ModelWish(source, name, version, kind, default, local_only, priority, metadata)
        key = idempotency_key if idempotency_key is not None else calls.new_key()
        return self._run(answered(calls.download_model(wish.body(), key=key)))

    def get(self, job_id: JobId) -> Job:
        """The job as it is now."""
        return self._run(answered(calls.get_job(job_id)))

    def list(
        self,
        *,
        status: Sequence[str] = (),
        type: str | None = None,
        model: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        error_code: Sequence[str] = (),
        page_size: int = 50,
    ) -> Iterator[Job]:
        """Jobs, newest first; pages, of ``page_size`` 1..200, are asked for as they are needed."""
        query = JobQuery(status, type, model, created_after, created_before, error_code)
        return self._iterate(paged(lambda cursor: calls.list_jobs(query, page_size=page_size, cursor=cursor)))

    def cancel(self, job_id: JobId) -> Job:
        """Ask for the job's end; the job as it is then: `cancelled`, `cancelling`, or over in another way."""
        return self._run(answered(calls.cancel_job(job_id)))

    def retry(self, job_id: JobId) -> Job:
        """Queue a job again that has failed or was cancelled; the images it has stay. It is asked for once."""
        return self._run(answered(calls.retry_job(job_id)))

    def delete(self, job_id: JobId) -> None:
        """Delete a job that is over, with its images and its events."""
        self._run(deleted(job_id))

    def watch(self, job_id: JobId, *, timeout: float | None = None) -> Iterator[Job]:
        """The job again and again, the last time when it is over. Raises ``WaitTimeout`` after ``timeout`` seconds.

        A service that goes away is waited for, about half a minute.
        """
        return self._iterate(watched(job_id, timeout=timeout, now=time.monotonic))

    def wait(self, job_id: JobId, *, timeout: float | None = None) -> Job:
        """The job once it is over, however it ended. Raises ``WaitTimeout`` after ``timeout`` seconds."""
        return self._run(waited(job_id, timeout=timeout, now=time.monotonic))

    def stream(self, job_id: JobId, *, after: int = 0) -> Iterator[StreamEvent]:
        """The job's events behind the ``seq`` ``after`` as they happen, each with the job's progress, until it is over.

        Each comes once and in order: a stream that breaks is taken up again, on whichever replica answers. Raises when
        nobody has answered for about half a minute, and when it is no Dream Forge that does.
        """
        return self._iterate(streamed(job_id, after=after, now=time.monotonic))

    def logs(
        self,
        job_id: JobId,
        *,
        after: int = 0,
        levels: Sequence[str] = (),
        codes: Sequence[str] = (),
        item_index: int | None = None,
        follow: bool = False,
    ) -> Iterator[LogLine]:
        """The job's events behind the ``seq`` ``after``; with ``follow`` also those to come, until it is over.

        ``levels`` (`warning`, …), ``codes`` (`item.finished`, …) and ``item_index``, 0..99, leave out all others;
        ``ValueError`` is raised for those that there are not.
        """
        query = LogQuery(after, levels, codes, item_index)
        return self._iterate(logged(job_id, query, follow=follow, now=time.monotonic))

    def progress(self, job_id: JobId) -> Progress:
        """How far the job and each of its images is."""
        return self._run(answered(calls.get_progress(job_id)))

    def artifacts(self, job_id: JobId) -> Iterator[Artifact]:
        """The job's finished images, in order, each with a URL that is good for a while."""
        return self._iterate(paged(lambda cursor: calls.list_artifacts(job_id, cursor=cursor)))

    def artifact(self, artifact_id: UUID | str) -> Artifact:
        """One image, with a URL that is good for a while."""
        return self._run(answered(calls.get_artifact(artifact_id)))

    def download(self, artifact: Artifact, target: Path, *, overwrite: bool = False) -> Path:
        """Save an image as ``target``, which appears whole and with the right checksum, or not at all.

        Raises ``FileExistsError`` when it is there already, and ``ChecksumMismatch``.
        """
        return self._run(downloaded(artifact, target, overwrite=overwrite))

    def models(self) -> Sequence[Model]:
        """Every model, with the JSON Schema of its parameters."""
        return self._run(answered(calls.list_models()))

    def model(self, reference: str) -> Model:
        """The model of an id, of name@version, or of a name: then its newest version."""
        return self._run(answered(calls.get_model(reference)))

    def readiness(self) -> Readiness:
        """What the service says of itself and its dependencies, ready or not. Asked once: it is about this moment."""
        return self._run(answered(calls.get_readiness(), pauses=()))

    def _run(self, flow: Flow[Never, Result]) -> Result:
        with Course(flow) as course, Ear(self._http, self._wire) as ear:
            while course.effect is not None:
                course.answer(self._perform(course.effect, ear))
            return course.result

    def _iterate(self, flow: Flow[T, Any]) -> Generator[T]:
        with Course(flow) as course, Ear(self._http, self._wire) as ear:
            while course.effect is not None:
                if isinstance(course.effect, Give):
                    yield course.effect.value
                    course.answer(None)
                else:
                    course.answer(self._perform(course.effect, ear))

    def _perform(self, effect: Effect | Give[Never], ear: Ear) -> object:
        match effect:
            case Pause() as pause:
                return time.sleep(pause.drawn())
            case Call():
                return self._call(effect)
            case Fetch():
                return self._fetch(effect)
            case Listen():
                return ear.hear(effect)
            case Give():
                return None

    def _call(self, call: Call[Any]) -> object:
        url = self._wire.url(call)
        try:
            response = self._http.request(
                call.method,
                url,
                params=call.params or None,
                json=call.json,
                headers=dict(call.headers),
                timeout=self._wire.timeout_of(call),
            )
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            return self._wire.unreachable(error)
        retry_after = response.headers.get("Retry-After")
        return calls.read_answer(call, url, response.status_code, response.content, retry_after=retry_after)

    def _fetch(self, fetch: Fetch) -> ClientError | None:
        try:
            with self._http.stream("GET", fetch.url) as response:
                if refusal := self._wire.refusal(fetch.url, response.status_code):
                    return refusal
                for chunk in response.iter_bytes():
                    fetch.part.write(chunk)
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            return self._wire.unreachable(error, store_url=fetch.url)
        return None
