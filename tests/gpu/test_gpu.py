"""A full-size SDXL on a real GPU: the report's measurements, run once, and its checks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dreamforge.worker.gpu import GpuDevice, visible_gpu
from tests.gpu.program import ROOT

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

MEASUREMENTS = ("one image", "batch of 4", "low_vram", "forced OOM", "the same image again", "schedulers")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a report of the first GPU found; its table is printed."""
    found = visible_gpu(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if not isinstance(found, GpuDevice):
        pytest.skip(f"it takes an NVIDIA GPU: {found.reason}")
    target: Path = tmp_path_factory.mktemp("report") / "gpu.json"
    command = [sys.executable, "-m", "tests.gpu.report", "--json", str(target)]
    result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    capturing: Any = request.config.pluginmanager.getplugin("capturemanager")
    with capturing.global_and_fixture_disabled():
        sys.stdout.write(f"\n{result.stdout}{result.stderr}")
    return json.loads(target.read_text())


@pytest.mark.parametrize("measurement", MEASUREMENTS)
def test_a_full_size_model_passes_every_check_of(report: dict[str, Any], measurement: str) -> None:
    checks = [check for check in report["checks"] if check["what"].startswith(measurement)]
    assert checks
    assert [check for check in checks if not check["has_passed"]] == []


def test_nothing_fails_to_be_measured(report: dict[str, Any]) -> None:
    assert [check for check in report["checks"] if check["what"].endswith("it can be measured")] == []
