"""What `make` says and installs, and what `up` makes of the machine."""

import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dreamforge.cli import up
from dreamforge.settings import Settings

ROOT = Path(__file__).parent.parent.parent
# The environment's own, and this project.
_NOT_PINNED = {"pip", "setuptools", "wheel", "dreamforge"}


def test_another_python_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    other = tmp_path / "python3.12"
    other.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 12, 1); exec(sys.argv[1])" "$2"\n'
    )
    other.chmod(0o755)
    result = subprocess.run(
        ["make", "run", f"PYTHON={other}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "Dream Forge needs Python 3.11; " in result.stderr
    assert "is 3.12. Try: make run PYTHON=python3.11" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_everything_that_is_installed_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): pin.specifier for pin in pins}
    # Ray puts libraries of its own into the path.
    site = [sysconfig.get_path("purelib")]
    installed = {canonicalize_name(found.name): found.version for found in metadata.distributions(path=site)}
    assert {name for name in installed if name not in pinned} - _NOT_PINNED == set()
    assert {name for name, version in installed.items() if name in pinned and version not in pinned[name]} == set()


@pytest.mark.parametrize(("wanted", "found", "expected"), [(None, 0, 1), (None, 2, 2), (0, 2, 0), (3, 0, 3)])
def test_gpus_are_those_asked_for_else_those_found_else_one(
    monkeypatch: pytest.MonkeyPatch, wanted: int | None, found: int, expected: int
) -> None:
    monkeypatch.setattr(up, "count_gpus", lambda: found)
    assert up._gpus(Settings(gpus=wanted)) == expected  # pyright: ignore[reportPrivateUsage] - the rule alone
