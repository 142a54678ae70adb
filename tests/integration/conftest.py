"""What the integration tests share."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SDXL model, built once, in a process of its own: torch stays out of the tests' own."""
    folder = tmp_path_factory.mktemp("models") / "sdxl-tiny"
    subprocess.run([sys.executable, "-m", "dreamforge.runners.tiny", str(folder)], check=True, capture_output=True)
    return folder
