"""From what an image file says to a job that draws it again. Pure."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dreamforge.api.schemas import Model
from dreamforge.errors import InvalidRequest
from dreamforge.images.manifest import Manifest
from dreamforge.images.parameters_reading import A1111Parameters, parse_parameters
from dreamforge.images.reading import ReadMetadata
from dreamforge.jobs.schedulers import SCHEDULERS
from dreamforge.models.parameters import resolve_parameters

_MOST_NAMED = 8
_SHORT_HASH = 10
_UNDERSTOOD = {
    *("Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model", "Model hash", "Version"),
    *("Hashes", "Lora hashes", "Civitai resources"),
}
"""Fields of a `parameters` text that are used, or that say nothing about the pixels."""
_NO_SCHEDULE = {"", "automatic", "uniform"}
_AUTOMATIC = {
    **dict.fromkeys(("dpm++ 2m", "dpm++ sde", "dpm++ 2s a", "dpm2", "dpm2 a"), "karras"),
    **dict.fromkeys(("dpm++ 2m sde", "dpm++ 2m sde heun", "dpm++ 3m sde"), "exponential"),
}
"""What A1111 takes for `Automatic`, where that is not the sampler's own (``modules/sd_samplers_kdiffusion.py``)."""


@dataclass(frozen=True)
class ImageCall:
    """A job to submit. ``model`` is what its `model_id` takes, None for the default one; ``notes`` are sentences about
    what will not be as it was.
    """

    prompt: str
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()


def call_of(read: ReadMetadata, models: Sequence[Model], *, model: str | None = None) -> ImageCall | None:
    """The job that draws the image again, on one of the service's ``models`` or on ``model``.

    By our manifest, or else by the `parameters` text; None when the file has neither.
    """
    if read.manifest is not None and isinstance(read.manifest.params.get("prompt"), str):
        call = _of_manifest(read.manifest, models, wanted=model)
    elif read.parameters is not None:
        call = _of_parameters(parse_parameters(read.parameters), models, wanted=model)
    else:
        return None
    return _fitting(call, _schema_of(call.model, models))


def _of_manifest(manifest: Manifest, models: Sequence[Model], *, wanted: str | None) -> ImageCall:
    params = {name: value for name, value in manifest.params.items() if name != "prompt"}
    if manifest.seed is not None:
        params["seed"] = manifest.seed
    model, notes = wanted, list[str]()
    if manifest.model is not None:
        named = f"{manifest.model.name}@{manifest.model.version}" if manifest.model.version else manifest.model.name
        model, notes = _chosen(named, manifest.model.sha256, models, wanted=wanted)
    # Whatever it had to do without, it could not be drawn otherwise.
    options = {"oom_policy": "degrade"} if manifest.rung else dict[str, Any]()
    return ImageCall(manifest.params["prompt"], params, model, options, tuple(notes))


def _of_parameters(text: A1111Parameters, models: Sequence[Model], *, wanted: str | None) -> ImageCall:
    fields = text.fields
    width, _, height = fields.get("Size", "").partition("x")
    scheduler, notes = _scheduler(fields.get("Sampler", ""), fields.get("Schedule type", ""))
    params = {
        "negative_prompt": text.negative_prompt,
        "steps": _number(fields.get("Steps")),
        "guidance_scale": _number(fields.get("CFG scale")),
        "seed": _number(fields.get("Seed")),
        "width": _number(width),
        "height": _number(height),
        "scheduler": scheduler,
        "loras": [{"name": lora.name, "weight": lora.weight} for lora in text.loras] or None,
    }
    model, said = _model_of(fields, models, wanted=wanted)
    left_out = [name for name in fields if name not in _UNDERSTOOD][:_MOST_NAMED]
    others = [f"Not repeated: {', '.join(left_out)}."] if left_out else []
    given = {name: value for name, value in params.items() if value is not None}
    return ImageCall(prompt=text.prompt, params=given, model=model, notes=(*said, *notes, *others))


def _model_of(
    fields: Mapping[str, str], models: Sequence[Model], *, wanted: str | None
) -> tuple[str | None, list[str]]:
    """The model that a `parameters` text names, or the default one where it is not here."""
    named = fields.get("Model") or fields.get("Model hash")
    if wanted is None and not named:
        return None, ["The file names no model: the default one is used."]
    model, said = _chosen(fields.get("Model", ""), fields.get("Model hash"), models, wanted=wanted)
    if wanted is None and not (model and _is_known(model, models)):
        return None, [f"The model {named} is not here: the default one is used."]
    return model, said


def _chosen(
    named: str, sha256: str | None, models: Sequence[Model], *, wanted: str | None
) -> tuple[str | None, list[str]]:
    """Which model to ask for, and what to say about it: the one of that name, or else the one that is the same."""
    model = wanted or named or None
    same = [other for other in models if sha256 and _is_same(other, sha256)]
    if wanted is None and same and not any(_is_called(other, named) for other in models):
        model = _full_name(same[0])
        return model, [f"{named} is called {model} here."] if named else []
    found = [other for other in models if model and _is_called(other, model)]
    if found and sha256 and not any(other in same for other in found):
        return model, [f"{model} is not the model that the file was made with: its hash is another. Images may differ."]
    return model, []


def _is_called(model: Model, reference: str) -> bool:
    return reference in {model.name, _full_name(model), str(model.id)}


def _is_known(reference: str, models: Sequence[Model]) -> bool:
    return any(_is_called(model, reference) for model in models)


def _is_same(model: Model, sha256: str) -> bool:
    """By the whole hash, or by a short one as A1111 writes it."""
    return len(sha256) >= _SHORT_HASH and (model.checkpoint_hash or "").startswith(sha256.lower())


def _full_name(model: Model) -> str:
    return f"{model.name}@{model.version}"


def _schema_of(reference: str | None, models: Sequence[Model]) -> Mapping[str, Any] | None:
    found = [model for model in models if (_is_called(model, reference) if reference else model.default)]
    return found[0].parameters_schema if found else None


def _fitting(call: ImageCall, schema: Mapping[str, Any] | None) -> ImageCall:
    """The call without the parameters that the model does not take; what is not known of it the service judges."""
    if schema is None:
        return call
    params, notes = dict[str, Any](), list[str]()
    for name, value in call.params.items():
        if reason := _refusal(name, value, schema):
            notes.append(f"{name} is left out: {reason}.")
        else:
            params[name] = value
    return replace(call, params=params, notes=(*call.notes, *notes))


def _refusal(name: str, value: object, schema: Mapping[str, Any]) -> str | None:
    if name not in schema.get("properties", {}):
        return "the model does not know it"
    try:
        resolve_parameters({name: value}, {**schema, "required": []})
    except InvalidRequest as error:
        return "; ".join(part["message"] for part in error.details["errors"])
    return None


def _scheduler(sampler: str, schedule: str) -> tuple[str | None, list[str]]:
    """Our name for A1111's sampler and schedule type, or for both in the one, as older versions wrote it."""
    given, kind = sampler.strip().lower(), schedule.strip().lower()
    if not given:
        return None, []
    names = {row.title.lower(): name for name, row in SCHEDULERS.items()}
    if kind in _NO_SCHEDULE:
        kind = _AUTOMATIC.get(given, "") if kind == "automatic" else ""
    if (title := f"{given} {kind}".strip()) in names:
        return names[title], []
    said = f"{sampler} {schedule}".strip()
    return None, [f"There is no scheduler {said} here: the model's own is used."]


def _number(text: str | None) -> int | float | None:
    """The number in a field; None for what is none."""
    for read in (int, float):
        with contextlib.suppress(ValueError):
            number = read(text or "")
            return number if math.isfinite(number) else None
    return None
