"""What the tests of refusals share."""

from pathlib import Path

import pytest

from tests.refusal import Refusals


@pytest.fixture
def refusals(tmp_path: Path) -> Refusals:
    """`dreamforge up` over a folder of the test's own."""
    return Refusals(tmp_path)
