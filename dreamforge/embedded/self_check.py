"""One image through every part, as a client would ask for it."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from dreamforge.embedded.trouble import StackError

_READY_SECONDS = 120.0
_IMAGE_SECONDS = 300.0
_POLL_SECONDS = 0.2
_OVER = {"succeeded", "failed", "cancelled"}


class SelfCheck:
    """A client of the API. ``alive`` raises when going on makes no sense."""

    def __init__(self, *, base_url: str, alive: Callable[[], None]) -> None:
        self._client = httpx2.Client(base_url=base_url, timeout=10)
        self._alive = alive

    def wait_until_ready(self) -> None:
        """Return once `/readyz` says ok. Raises ``StackError`` naming what is missing."""
        last: dict[str, Any] = {}

        def is_ready() -> bool:
            last.update(self._client.get("/readyz").json())
            return last.get("status") == "ok"

        if not self._wait(is_ready, seconds=_READY_SECONDS):
            missing = [
                f"{name}: {check['message']}" for name, check in last.get("checks", {}).items() if not check["ok"]
            ]
            raise StackError(f"The API is not ready. {'; '.join(missing) or 'It does not answer.'}")

    def draw(self, target: Path) -> None:
        """Post a job, wait, fetch its image into ``target`` and compare the checksum. Raises ``StackError``."""
        body = {"type": "generate", "params": {"prompt": "a lighthouse at dawn"}, "metadata": {"from": "self-check"}}
        response = self._client.post("/v1/jobs", json=body)
        if response.status_code != 201:
            raise StackError(f"The self-check's job was refused: {response.text[:800]}")
        job: dict[str, Any] = response.json()

        def is_over() -> bool:
            job.update(self._client.get(job["links"]["self"]).json())
            return job["status"] in _OVER

        if not self._wait(is_over, seconds=_IMAGE_SECONDS):
            raise StackError(f"The self-check's job {job['id']} is still {job['status']} after {_IMAGE_SECONDS:g} s.")
        if job["status"] != "succeeded":
            raise StackError(f"The self-check's job {job['id']} {job['status']}: {job['error']}")
        self._fetch(job, target)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _fetch(self, job: dict[str, Any], target: Path) -> None:
        (artifact,) = self._client.get(job["links"]["artifacts"]).raise_for_status().json()["items"]
        data = httpx2.get(artifact["url"], timeout=10).raise_for_status().content
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != artifact["checksum"]:
            raise StackError("The self-check's image is not what was stored: its checksum differs.")
        target.write_bytes(data)

    def _wait(self, condition: Callable[[], bool], *, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._alive()
            try:
                if condition():
                    return True
            except (httpx2.HTTPError, ValueError):
                pass  # not there yet
            time.sleep(_POLL_SECONDS)
        return False
