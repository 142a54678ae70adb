"""The GPU report on a CPU, with a small model, where nothing of the service is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.program import ROOT
from tests.gpu.test_gpu import MEASUREMENTS

ABSENT = [
    *(
        "ray",
        "fastapi",
        "starlette",
        "pydantic",
        "pydantic_settings",
        "sqlalchemy",
        "psycopg",
        "alembic",
        "redis",
        "rq",
    ),
    *("minio", "pynvml", "psutil", "prometheus_client", "jsonschema", "uuid6", "rich", "accelerate", "peft", "compel"),
]
# Python runs `sitecustomize` at its start, and looks for modules by what stands in `sys.meta_path`.
BARE = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
LEFT_OUT = {"low_vram", "forced OOM"}


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python that has torch and its like, and no more."""
    (tmp_path / "sitecustomize.py").write_text(BARE)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_the_environment_is_bare(bare: dict[str, str]) -> None:
    check = f"from importlib.util import find_spec; assert not any(map(find_spec, {ABSENT}))"
    assert subprocess.run([sys.executable, "-c", check], check=False, env=bare).returncode == 0


@pytest.mark.timeout(300)
def test_the_report_runs_alone(bare: dict[str, str], tmp_path: Path) -> None:
    target = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "tests.gpu.report", "--size=tiny", "--device=cpu", f"--json={target}"]
    result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, env=bare)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "| one image, the next " in result.stdout
    report = json.loads(target.read_text())
    assert [row["images"] for row in report["rows"]] == [1, 1, 4, 1, 1]
    assert all(row["image_s"] > 0 and 0 < row["outside"] < 1 for row in report["rows"])
    assert {check["what"].partition(":")[0] for check in report["checks"]} == set(MEASUREMENTS) - LEFT_OUT
    assert {line.partition(":")[0] for line in report["left_out"]} == LEFT_OUT
    assert report["machine"]["dtype"] == "float32"


def test_without_a_gpu_it_says_so(bare: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu.report", f"--json={tmp_path / 'gpu.json'}"]
    result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, env=bare | {"PATH": ""})
    assert result.returncode == 1
    assert "No GPU to measure: there is no nvidia-smi" in result.stderr
    assert "Traceback" not in result.stderr
