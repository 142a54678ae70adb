"""The service that most tests share, and what the tests of refusals do."""

from collections.abc import Iterator
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


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The whole service as `dreamforge up` starts it, ready.

    It ends with these tests: even idle, it takes its part of a processor from those that come after them.
    """
    data_dir = tmp_path_factory.mktemp("stack")
    stack = RunningStack(
        data_dir=data_dir, DREAMFORGE_SELF_CHECK="true", DREAMFORGE_MODELS_DIR=str(data_dir / "models")
    )
    with stack.ready():
        yield stack
