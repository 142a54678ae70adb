"""`dreamforge …` as a user types it, at a service of the test's own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2

from tests.integration.door import GOOD
from tests.web import web


def environment(url: str) -> dict[str, str]:
    """What a command finds in its environment."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DREAMFORGE_")}
    return {**inherited, "DREAMFORGE_URL": url}


def command(*arguments: str | Path) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "dreamforge.cli.main", *map(str, arguments)]


def ran(url: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """How the command ended."""
    return subprocess.run(
        command(*arguments), env=environment(url), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


def succeeded(url: str, *arguments: str | Path) -> str:
    """What a command that ended well has printed."""
    result = ran(url, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def posted(url: str, *, count: int = 1) -> dict[str, Any]:
    """A job that was just accepted."""
    return web.post(f"{url}/v1/jobs", json={**GOOD, "count": count}).json()


def get(url: str, path: str) -> httpx2.Response:
    """Get a path of the API."""
    return web.get(f"{url}{path}")
