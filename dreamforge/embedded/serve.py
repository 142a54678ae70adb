"""Deploying `serve_config.yaml` through the dashboard, as `serve deploy` does."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import yaml

from dreamforge.embedded.ray_head import PROJECT, authorization
from dreamforge.embedded.trouble import StackError

_PATH = "/api/serve/applications/"
_DEPLOY_SECONDS = 180.0
_POLL_SECONDS = 0.2
_LONGEST_LINE = 400


class ServeApplications:
    """The applications of a Ray cluster, through its dashboard. ``alive`` raises when going on makes no sense."""

    def __init__(self, *, dashboard_url: str, token: str | None, alive: Callable[[], None]) -> None:
        self._client = httpx2.Client(base_url=dashboard_url, headers=authorization(token) if token else {}, timeout=30)
        self._alive = alive

    def deploy(self, config: dict[str, Any]) -> None:
        """Hand the configuration over. Raises ``StackError`` when it is refused."""
        try:
            response = self._client.put(_PATH, json=config)
        except httpx2.HTTPError as error:
            raise StackError(f"Ray's dashboard does not answer: {error}") from error
        if response.status_code != 200:
            raise StackError(f"Ray refused the configuration: {response.text.strip()[-800:]}")

    def wait_until_running(self) -> None:
        """Return once every application runs. Raises ``StackError`` with Serve's own message when one cannot."""
        deadline = time.monotonic() + _DEPLOY_SECONDS
        while True:
            self._alive()
            states = self._states()
            for name, (status, message) in states.items():
                if status in {"DEPLOY_FAILED", "UNHEALTHY"}:
                    raise StackError(f"The application {name!r} could not be deployed: {_last_line(message)}")
            if states and all(status == "RUNNING" for status, _ in states.values()):
                return
            if time.monotonic() > deadline:
                raise StackError(f"The applications did not come up within {_DEPLOY_SECONDS:g} s: {states}")
            time.sleep(_POLL_SECONDS)

    def delete(self, *, timeout: float) -> None:
        """Take every application down, and wait until they have drained or ``timeout`` seconds have passed."""
        try:
            self._client.delete(_PATH, timeout=timeout)
        except httpx2.HTTPError:
            # What has not drained by now ends with Ray.
            return

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _states(self) -> dict[str, tuple[str, str]]:
        try:
            details = self._client.get(_PATH).raise_for_status().json()
        except (httpx2.HTTPError, ValueError):
            return {}
        return {
            name: (application["status"], application.get("message") or "")
            for name, application in details["applications"].items()
        }


def _last_line(message: str) -> str:
    """What went wrong, out of a message that holds a whole traceback; Ray's logs have all of it."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return f"{lines[-1][:_LONGEST_LINE] if lines else 'Serve does not say why.'} (`dreamforge logs` has more)"


def load_config(*, host: str, port: int) -> dict[str, Any]:
    """`serve_config.yaml`, listening where the settings say."""
    bundled = Path(__file__).resolve().parent.parent / "_bundled" / "serve_config.yaml"
    path = bundled if bundled.exists() else PROJECT / "serve_config.yaml"
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    config["http_options"] = {**config.get("http_options", {}), "host": host, "port": port}
    return config
