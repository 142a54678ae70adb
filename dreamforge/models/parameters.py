"""A job's ``params`` against its model's schema: defaults filled in, everything else refused with path and reason."""

from collections.abc import Iterable, Mapping
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
    """The full parameters, in the schema's order: the caller's, else the preset's, else the defaults.

    Raises ``InvalidRequest`` with every path and reason.
    """
    errors = sorted(_Validator(schema).iter_errors(params), key=lambda error: list(map(str, error.absolute_path)))
    if errors:
        raise InvalidRequest("The parameters do not fit the model.", details={"errors": _described(errors)})
    rules: Mapping[str, Mapping[str, Any]] = schema["properties"]
    defaults = {name: rule.get("default") for name, rule in rules.items()}
    by_preset: Mapping[str, Any] = schema.get("x-presets", {}).get(params.get("preset", defaults.get("preset")), {})
    return {name: params.get(name, by_preset.get(name, default)) for name, default in defaults.items()}


def _described(errors: Iterable[ValidationError]) -> list[dict[str, str]]:
    """Path and reason of each. What is of a wrong type breaks other rules too; only the type is told."""
    reasons: dict[str, list[ValidationError]] = {}
    for error in errors:
        path = ".".join(["params", *(str(part)[:64] for part in error.absolute_path)])[:200]
        reasons.setdefault(path, []).append(error)
    described = [
        {"path": path, "message": _reason(error)}
        for path, found in reasons.items()
        for error in ([error for error in found if error.validator == "type"] or found)
    ]
    return described[:_MOST_ERRORS]


def _reason(error: ValidationError) -> str:
    """The reason in our words: the library's repeat the caller's input, whole."""
    rule: Any = error.validator_value
    schema: Any = error.schema
    given: Any = error.instance
    match error.validator:
        case "enum":
            return f"must be one of: {', '.join(map(str, rule))}"
        case "oneOf" if all("const" in choice for choice in rule):
            return f"must be one of: {', '.join(str(choice['const']) for choice in rule)}"
        case "type":
            return f"must be of type {' or '.join(rule) if isinstance(rule, list) else rule}"
        case "required":
            return f"misses {', '.join(name for name in rule if name not in given)}"
        case "additionalProperties":
            return f"knows only: {', '.join(schema['properties'])}"
        case other:
            return _REASONS.get(str(other), f"breaks the rule {other}").format(rule)


_REASONS = {
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "exclusiveMinimum": "must be more than {}",
    "exclusiveMaximum": "must be less than {}",
    "multipleOf": "must be a multiple of {}",
    "const": "must be {}",
    "minLength": "must have at least {} characters",
    "maxLength": "must have at most {} characters",
    "maxItems": "must have at most {} entries",
}
