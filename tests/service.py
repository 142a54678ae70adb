"""A running service, as its clients see it."""

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx2

from tests.web import web

_Result = TypeVar("_Result")

OVER = {"succeeded", "failed", "cancelled"}


def wait_for(
    condition: Callable[[], _Result | None],
    *,
    seconds: float = 60.0,
    what: str = "it",
    instead: Callable[[], object] = str,
) -> _Result:
    """What ``condition`` gives once it holds; fail after ``seconds``, with what is there ``instead``."""
    deadline = time.monotonic() + seconds
    while True:
        if result := condition():
            return result
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds:g} s {instead()}"
        time.sleep(0.05)


class Service:
    """The API at ``base_url``."""

    base_url: str

    def post(self, **body: Any) -> httpx2.Response:
        """Post a generate job."""
        return self.ask("POST", "/v1/jobs", json={"type": "generate", **body})

    def get(self, path: str) -> httpx2.Response:
        """Get a path of the API."""
        return self.ask("GET", path)

    def ask(self, method: str, path: str, *, timeout: float = 10.0, **request: Any) -> httpx2.Response:
        """Make any request. Whatever the answer is, it has one id."""
        response = web.request(method, f"{self.base_url}{path}", timeout=timeout, **request)
        ids = response.headers.get_list("X-Request-Id")
        assert len(ids) == 1, (method, path, response.status_code, ids)
        assert ids[0], (method, path, response.status_code)
        return response

    def run(self, **body: Any) -> dict[str, Any]:
        """Post a job and wait for its end; the job."""
        response = self.post(**body)
        assert response.status_code == 201, response.text
        return self.wait_for_job(response.json()["id"])

    def wait_for_job(self, job_id: str, *, seconds: float = 120.0) -> dict[str, Any]:
        """The job, once it has ended."""
        job: dict[str, Any] = {}

        def is_over() -> bool:
            response = self.get(f"/v1/jobs/{job_id}")
            if response.status_code == 503:
                # A machine that is busy with tests may be too slow for what clients are promised.
                return False
            job.update(response.json())
            return job["status"] in OVER

        wait_for(is_over, seconds=seconds, what=f"the end of job {job_id}")
        return job

    def artifacts(self, job: dict[str, Any]) -> list[dict[str, Any]]:
        """The job's artifacts."""
        return self._surely(job["links"]["artifacts"]).json()["items"]

    def events(self, job: dict[str, Any]) -> list[dict[str, Any]]:
        """The job's events."""
        return [json.loads(line) for line in self._surely(job["links"]["logs"]).text.splitlines()]

    def _surely(self, path: str) -> httpx2.Response:
        def answer() -> httpx2.Response | None:
            found = self.get(path)
            # As above.
            return None if found.status_code == 503 else found

        return wait_for(answer, what=f"an answer of {path}")
