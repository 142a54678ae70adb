"""A job's parameters against its model's schema."""

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from dreamforge.errors import InvalidRequest
from dreamforge.models.descriptor import SizeRange, sdxl_schema
from dreamforge.models.parameters import resolve_parameters

SCHEMA = sdxl_schema(size=SizeRange(least=64, most=512, default=64), default_steps=4)


def _errors(params: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        resolve_parameters(params, SCHEMA)
    return {error["path"]: error["message"] for error in caught.value.details["errors"]}


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_defaults_fill_what_was_left_out() -> None:
    assert resolve_parameters({"prompt": "a fox"}, SCHEMA) == {
        "prompt": "a fox",
        "negative_prompt": "",
        "width": 64,
        "height": 64,
        "steps": 4,
        "guidance_scale": 6.5,
        "scheduler": "euler",
        "seed": None,
        "format": "png",
        "preset": "balanced",
    }


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"width": 7}, "params.width"),
        ({"width": 68}, "params.width"),
        ({"width": 64.0}, "params.width"),
        ({"height": 100_000}, "params.height"),
        ({"steps": 0}, "params.steps"),
        ({"steps": True}, "params.steps"),
        ({"seed": -1}, "params.seed"),
        ({"seed": 2**32}, "params.seed"),
        ({"guidance_scale": "6"}, "params.guidance_scale"),
        ({"scheduler": "best"}, "params.scheduler"),
        ({"prompt": "x" * 8193}, "params.prompt"),
        ({"prompt": None}, "params.prompt"),
        ({"colour": "red"}, "params"),
    ],
)
def test_what_does_not_fit_is_refused_by_path(wrong: dict[str, Any], path: str) -> None:
    assert path in _errors({"prompt": "a fox", **wrong})


def test_a_missing_prompt_is_named() -> None:
    assert "prompt" in _errors({})["params"]


def test_the_callers_input_is_not_echoed() -> None:
    message = _errors({"prompt": "secret " * 2000})["params.prompt"]
    assert "secret" not in message
    assert len(message) < 100
