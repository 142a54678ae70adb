"""A client that a generator makes of the OpenAPI document works at the deployed service."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.running_stack import RunningStack

pytestmark = pytest.mark.timeout(300)

_GENERATOR = "openapi-python-client==0.29.1"
_USE = Path(__file__).parent.parent / "generated_client" / "use.py"


def _ran(*command: str | Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | variables
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    """An environment of its own with the generator in it, which has another typer than we do."""
    python = tmp_path / "venv" / "bin" / "python"
    assert _ran(sys.executable, "-m", "venv", "venv", folder=tmp_path).returncode == 0
    installed = _ran(python, "-m", "pip", "install", "--quiet", _GENERATOR, folder=tmp_path)
    if installed.returncode:
        pytest.skip(f"the generator cannot be installed: {installed.stderr.strip().splitlines()[-1]}")
    return python


@pytest.fixture
def told(generator: Path, stack: RunningStack, tmp_path: Path) -> dict[str, Any]:
    """What a user of the client was told."""
    path = f"{generator.parent}{os.pathsep}{os.environ['PATH']}"
    document = tmp_path / "openapi.json"
    document.write_text(stack.get("/openapi.json").text)
    generate = [generator.parent / "openapi-python-client", "generate", "--meta", "none"]
    made = _ran(*generate, "--path", document, "--output-path", "generated", folder=tmp_path, PATH=path)
    assert made.returncode == 0, made.stdout + made.stderr
    # Types that it does not know: it hands out the answer's bytes.
    assert sorted(re.findall(r"Unsupported content_type ([^)]+)\)", made.stderr)) == [
        "application/x-ndjson",
        "image/png, image/jpeg, image/webp",
    ]
    assert made.stderr.count("WARNING parsing") == 2
    used = _ran(generator, _USE, stack.base_url, folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert used.returncode == 0, used.stdout + used.stderr
    return json.loads(used.stdout)


def test_a_generated_client_goes_through_every_operation(told: dict[str, Any]) -> None:
    log = told.pop("log")
    assert log == told.pop("stream") == list(range(1, told.pop("last_seq") + 1))
    assert {"prompt", "width", "seed", "steps"} <= set(told.pop("fields"))
    assert told == {
        "live": "ok",
        "ready": "ok",
        "metrics": True,
        "model": "sdxl-tiny",
        "unchanged": True,
        "status": "succeeded",
        "metadata": {"for": "a friend"},
        "replayed": True,
        "listed": True,
        "same": True,
        "seeds": [4, 5],
        "fraction": 1.0,
        "retried": "conflict",
        "cancelled": "succeeded",
        "deleted": 204,
        "gone": "not_found",
        "refused": "invalid_request",
        "download": ["model_download", "https:", True],
        "no_source": "invalid_request",
    }
