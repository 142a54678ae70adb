"""One image through every part, as a client would ask for it."""

import time
from collections.abc import Callable
from pathlib import Path

from dreamforge.api.schemas import Job, Readiness
from dreamforge.client import Client, ClientError
from dreamforge.embedded.trouble import StackError

_READY_SECONDS = 120.0
_IMAGE_SECONDS = 300.0
_POLL_SECONDS = 0.2


class SelfCheck:
    """A client of the API. ``alive`` raises when going on makes no sense."""

    def __init__(self, *, base_url: str, alive: Callable[[], None]) -> None:
        self._client = Client(base_url, timeout=10)
        self._alive = alive

    def wait_until_ready(self) -> None:
        """Return once `/readyz` says ok. Raises ``StackError`` naming what is missing."""
        deadline = time.monotonic() + _READY_SECONDS
        last: Readiness | None = None
        while time.monotonic() < deadline:
            self._alive()
            last = self._readiness() or last
            if last is not None and last.status == "ok":
                return
            time.sleep(_POLL_SECONDS)
        checks = last.checks if last else {}
        missing = [f"{name}: {check.message}" for name, check in checks.items() if not check.ok]
        raise StackError(f"The API is not ready. {'; '.join(missing) or 'It does not answer.'}")

    def draw(self, target: Path) -> None:
        """Post a job, wait, save its image as ``target`` and compare the checksum. Raises ``StackError``."""
        try:
            job = self._wait(self._client.submit("a lighthouse at dawn", metadata={"from": "self-check"}))
            (artifact,) = self._client.artifacts(job.id)
            self._client.download(artifact, target, overwrite=True)
        except ClientError as error:
            raise StackError(f"The self-check did not come through: {error}") from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _readiness(self) -> Readiness | None:
        try:
            return self._client.readiness()
        except ClientError:
            return None  # not there yet

    def _wait(self, job: Job) -> Job:
        for now in self._client.watch(job.id, timeout=_IMAGE_SECONDS):
            self._alive()
            job = now
        if job.status != "succeeded":
            raise StackError(f"The self-check's job {job.id} {job.status}: {job.error}")
        return job
