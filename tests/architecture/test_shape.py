"""Rules of the house that no linter knows."""

import ast
from pathlib import Path

import pytest

from dreamforge import errors
from dreamforge.api.errors import STATUS_OF_ERROR
from dreamforge.errors import DreamForgeError, StepError

ROOT = Path(__file__).parent.parent.parent
MODULES = sorted(path for room in ("dreamforge", "deployments") for path in (ROOT / room).rglob("*.py"))
MOST_LINES = 400
MOST_FUNCTION_LINES = 60
NAMELESS = {"utils", "helpers", "common", "base", "misc"}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_files_and_functions_stay_small(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= MOST_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < MOST_FUNCTION_LINES, node.name


def test_every_module_is_a_noun() -> None:
    assert not [_name(path) for path in MODULES if path.stem in NAMELESS]


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_every_public_thing_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert path.name == "__init__.py" or ast.get_docstring(tree), "the module"
    for node in tree.body:
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if named and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def _leaves(of: type[DreamForgeError]) -> list[type[DreamForgeError]]:
    below = of.__subclasses__()
    return [of] if not below else [leaf for kind in below for leaf in _leaves(kind)]


def test_every_error_a_route_can_raise_has_its_status() -> None:
    leaves = [leaf for leaf in _leaves(DreamForgeError) if leaf.__module__ == errors.__name__]
    shown = [leaf for leaf in leaves if not issubclass(leaf, StepError | errors.LeaseLost)]
    assert shown
    assert not [leaf.__name__ for leaf in shown if leaf.code != "internal" and leaf not in STATUS_OF_ERROR]


def test_every_leaf_has_a_code_of_its_own() -> None:
    codes = [leaf.code for leaf in _leaves(DreamForgeError) if leaf is not errors.LeaseLost]
    assert len(codes) == len(set(codes))
