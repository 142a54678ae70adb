"""The tiny model, built once."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model's folder."""
    folder = tmp_path_factory.mktemp("models") / "sdxl-tiny"
    subprocess.run([sys.executable, "-m", "dreamforge.runners.tiny", str(folder)], check=True, capture_output=True)
    return folder
