"""A job's ``params`` against its model's schema: defaults filled in, everything else refused with path and reason."""

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from dreamforge.errors import InvalidRequest

_MOST_ERRORS = 20


def _is_integer(_: Any, value: object) -> bool:
    # JSON Schema calls 4.0 an integer; a seed of 4.0 is a caller's mistake.
    return isinstance(value, int) and not isinstance(value, bool)


_Validator: type[Draft202012Validator] = extend(
    Draft202012Validator, type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer)
)


def resolve_parameters(params: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """The full parameters, in the schema's order. Raises ``InvalidRequest`` with every path and reason."""
    errors = sorted(_Validator(schema).iter_errors(params), key=lambda error: list(map(str, error.absolute_path)))
    if errors:
        raise InvalidRequest(
            "The parameters do not fit the model.",
            details={"errors": [_described(error) for error in errors[:_MOST_ERRORS]]},
        )
    rules: Mapping[str, Mapping[str, Any]] = schema["properties"]
    return {name: params.get(name, rule.get("default")) for name, rule in rules.items()}


def _described(error: ValidationError) -> dict[str, str]:
    path = ".".join(["params", *(str(part) for part in error.absolute_path)])
    return {"path": path, "message": _reason(error)}


def _reason(error: ValidationError) -> str:
    """The reason in our words: the library's repeat the caller's input, whole."""
    rule: Any = error.validator_value
    schema: Any = error.schema
    given: Any = error.instance
    match error.validator:
        case "minimum" | "exclusiveMinimum":
            return f"must be at least {rule}"
        case "maximum" | "exclusiveMaximum":
            return f"must be at most {rule}"
        case "multipleOf":
            return f"must be a multiple of {rule}"
        case "enum":
            return f"must be one of: {', '.join(map(str, rule))}"
        case "type":
            return f"must be of type {' or '.join(rule) if isinstance(rule, list) else rule}"
        case "maxLength":
            return f"must have at most {rule} characters"
        case "required":
            return f"misses {', '.join(name for name in rule if name not in given)}"
        case "additionalProperties":
            return f"knows only: {', '.join(schema['properties'])}"
        case other:
            return f"breaks the rule {other}"
