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
    assert SCHEMA["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    assert SCHEMA["additionalProperties"] is False
    Draft202012Validator.check_schema(SCHEMA)


def _control(name: str, rule: dict[str, Any]) -> str:
    """The line of a form that a client would draw, from nothing but the schema."""
    hints, types = rule["x-ui"], rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
    label = f"{hints['group']}/{hints['order']} {rule['title']} ({rule['description']})"
    start = rule["default"] if name not in SCHEMA["required"] else "must be filled in"
    match hints["widget"]:
        case "textarea" | "text":
            return f"{label} up to {rule['maxLength']} characters, {start!r}"
        case "select":
            return f"{label} one of {[(choice['const'], choice['title']) for choice in rule['oneOf']]}, {start!r}"
        case "slider" | "seed" | "number":
            assert hints["step"] > 0
            assert types[0] in {"integer", "number"}
            return f"{label} {rule['minimum']}..{rule['maximum']} by {hints['step']}{hints.get('unit', '')}, {start!r}"
        case "model":
            return f"{label} one of the models of kind {hints['kind']}, {start!r}"
        case "models":
            rules = rule["items"]["properties"]
            ranges = f"{rules['weight']['minimum']}..{rules['weight']['maximum']}"
            return f"{label} up to {rule['maxItems']} models of kind {hints['kind']}, {ranges} of each, {start!r}"
        case other:
            raise AssertionError(other)


def test_a_form_can_be_drawn_from_it() -> None:
    properties = SCHEMA["properties"]
    groups = [group["id"] for group in SCHEMA["x-ui"]["groups"]]
    drawn = [_control(name, rule) for name, rule in properties.items()]
    assert len(drawn) == len(set(drawn)) == len(properties)
    orders = [rule["x-ui"]["order"] for rule in properties.values()]
    assert orders == list(range(1, len(properties) + 1)), "Postgres keeps no order of keys"
    for name, rule in properties.items():
        assert rule["x-ui"]["group"] in groups
        assert isinstance(rule["x-ui"]["advanced"], bool)
        assert ("default" in rule) is (name not in SCHEMA["required"])
        values = [*rule["examples"], *([rule["default"]] if "default" in rule else [])]
        for value in values:
            resolve_parameters({"prompt": "a fox", name: value}, SCHEMA)


def test_choices_have_names_for_people() -> None:
    titles = {choice["const"]: choice["title"] for choice in SCHEMA["properties"]["scheduler"]["oneOf"]}
    assert titles["dpmpp_2m_karras"] == "DPM++ 2M Karras"
    assert titles["euler"] == "Euler"


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
        "loras": [],
        "vae": None,
        "format": "png",
        "quality": 90,
        "preset": "balanced",
    }


@pytest.mark.parametrize(
    ("given", "steps"),
    [({}, 4), ({"preset": "fast"}, 20), ({"preset": "quality"}, 50), ({"preset": "fast", "steps": 7}, 7)],
)
def test_a_preset_gives_steps_where_the_caller_names_none(given: dict[str, Any], steps: int) -> None:
    assert resolve_parameters({"prompt": "a fox", **given}, SCHEMA)["steps"] == steps


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"width": 7}, "params.width"),
        ({"width": 68}, "params.width"),
        ({"width": 64.0}, "params.width"),
        ({"height": 100_000}, "params.height"),
        ({"steps": 0}, "params.steps"),
        ({"format": "gif"}, "params.format"),
        ({"quality": 0}, "params.quality"),
        ({"quality": 101}, "params.quality"),
        ({"quality": 90.0}, "params.quality"),
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


def test_a_reason_says_what_would_fit_and_repeats_nothing() -> None:
    found = _errors({"prompt": 5, "width": 7, "steps": "many", "scheduler": "secret", "seed": True, "colour": "secret"})
    assert found["params.prompt"] == "must be of type string"
    assert found["params.steps"] == "must be of type integer"
    assert found["params.seed"] == "must be of type integer or null"
    assert found["params.scheduler"].startswith("must be one of: euler, euler_a, ")
    assert found["params"].startswith("knows only: prompt, ")
    assert not [message for message in found.values() if "secret" in message or "many" in message]


def test_only_the_type_is_told_of_what_is_of_a_wrong_type() -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve_parameters({"prompt": "a fox", "width": 3.5, "scheduler": 5}, SCHEMA)
    paths = [error["path"] for error in caught.value.details["errors"]]
    assert paths == ["params.scheduler", "params.width"]


def test_a_thousand_mistakes_are_not_all_told() -> None:
    schema = {"properties": {}, "patternProperties": {"": {"type": "string"}}}
    with pytest.raises(InvalidRequest) as caught:
        resolve_parameters({str(number): number for number in range(1000)}, schema)
    assert len(caught.value.details["errors"]) == 20
