"""API, dispatcher and supervisor must not hold torch: a GPU process of its own does."""

import subprocess
import sys

import pytest

from dreamforge.cli.main import COMMANDS

ENTRY_POINTS = [
    "deployments.api",
    "deployments.api_replica",
    "deployments.dispatcher",
    "deployments.dispatcher_replica",
    "deployments.step",
    "dreamforge.cli.main",
    *COMMANDS.values(),
]


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_importing_it_brings_no_torch(entry_point: str) -> None:
    code = f"import sys, {entry_point}; print(sorted({{'torch', 'diffusers', 'transformers'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_it_imports_where_torch_is_not_installed(entry_point: str) -> None:
    missing = "dict.fromkeys(['torch', 'diffusers', 'transformers', 'accelerate', 'safetensors'])"
    code = f"import sys; sys.modules.update({missing}); import {entry_point}; print('imported')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.splitlines()[-1:] == ["imported"], result.stderr[-2000:]
