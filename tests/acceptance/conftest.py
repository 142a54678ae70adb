"""What the tests of refusals share."""

from pathlib import Path

import pytest

from tests.refusal import Refusals
from tests.running_stack import RunningStack


@pytest.fixture(scope="session", autouse=True)
def shared_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have the built-in model made once, by the first stack that needs it."""
    RunningStack.models_dir = tmp_path_factory.mktemp("models")


@pytest.fixture
def refusals(tmp_path: Path) -> Refusals:
    """`dreamforge up` over a folder of the test's own."""
    return Refusals(tmp_path)
