"""From what an image file says to a job that draws it again. Pure."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dreamforge.api.schemas import Model
from dreamforge.cli.image_companions import companions_of_manifest, companions_of_text
from dreamforge.cli.image_models import CHECKPOINT, Choice, absent, choose, judge, meant
from dreamforge.errors import InvalidRequest
from dreamforge.images.manifest import Manifest, ManifestModel
from dreamforge.images.parameters_reading import A1111Parameters, parse_parameters
from dreamforge.images.reading import ReadMetadata
from dreamforge.jobs.memory_ladder import savings
from dreamforge.jobs.presets import preset_of
from dreamforge.jobs.schedulers import SCHEDULERS, UNIFORM
from dreamforge.models.parameters import resolve_parameters

_MOST_NAMED = 8
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
    params = {name: value for name, value in manifest.params.items() if name not in {"prompt", "loras", "vae"}}
    if manifest.seed is not None:
        params["seed"] = manifest.seed
    chosen = _model_of_manifest(manifest.model, models, wanted=wanted)
    companions = companions_of_manifest(manifest, models)
    # Whatever it had to do without, it could not be drawn otherwise.
    options = {"oom_policy": "degrade"} if manifest.rung else dict[str, Any]()
    notes = (*chosen.notes, *companions.notes, *_circumstances(manifest))
    return ImageCall(manifest.params["prompt"], {**params, **companions.params}, chosen.reference, options, notes)


def _model_of_manifest(model: ManifestModel | None, models: Sequence[Model], *, wanted: str | None) -> Choice:
    if wanted is not None:
        return judge(wanted, model.sha256 if model else None, models)
    if model is None or not model.name:
        return Choice(None)
    named = f"{model.name}@{model.version}" if model.version else model.name
    chosen = choose(named, model.sha256, models, kind=CHECKPOINT)
    # Why one cannot be had the service says best.
    return chosen if chosen.reference else Choice(named, absent(named, model.sha256, model.air, models))


def _circumstances(manifest: Manifest) -> list[str]:
    """What a job does not ask for and what still moves pixels."""
    notes: list[str] = []
    if (manifest.batch_size or 1) > 1:
        notes.append(f"It was drawn in a batch of {manifest.batch_size}: in another, pixels may differ by rounding.")
    own = savings(preset_of(manifest.params).rung)
    if saved := [name for name in manifest.memory_savings if name not in own][:_MOST_NAMED]:
        told = ", ".join(name.replace("_", " ") for name in saved)
        notes.append(f"It was drawn with less memory ({told}): without that, pixels may differ by rounding.")
    return notes


def _of_parameters(text: A1111Parameters, models: Sequence[Model], *, wanted: str | None) -> ImageCall:
    fields = text.fields
    width, _, height = fields.get("Size", "").partition("x")
    scheduler, notes = _scheduler(fields.get("Sampler", ""), fields.get("Schedule type", ""))
    companions = companions_of_text(text, models)
    params = {
        "negative_prompt": text.negative_prompt,
        "steps": _number(fields.get("Steps")),
        "guidance_scale": _number(fields.get("CFG scale")),
        "seed": _number(fields.get("Seed")),
        "width": _number(width),
        "height": _number(height),
        "scheduler": scheduler,
    }
    chosen = _model_of_text(fields, models, wanted=wanted)
    left_out = [name for name in fields if name not in _UNDERSTOOD][:_MOST_NAMED]
    others = [f"Not repeated: {', '.join(left_out)}."] if left_out else []
    given = {name: value for name, value in params.items() if value is not None}
    return ImageCall(
        prompt=text.prompt,
        params={**given, **companions.params},
        model=chosen.reference,
        notes=(*chosen.notes, *notes, *companions.notes, *others),
    )


def _model_of_text(fields: Mapping[str, str], models: Sequence[Model], *, wanted: str | None) -> Choice:
    """The model that a `parameters` text names, or the default one where it is not here."""
    sha256 = fields.get("Model hash")
    named = fields.get("Model") or sha256
    if wanted is not None:
        return judge(wanted, sha256, models)
    if not named:
        return Choice(None, ("The file names no model: the default one is used.",))
    chosen = choose(fields.get("Model", ""), sha256, models, kind=CHECKPOINT)
    return chosen if chosen.reference else Choice(None, (f"The model {named} is not here: the default one is used.",))


def _schema_of(reference: str | None, models: Sequence[Model]) -> Mapping[str, Any] | None:
    found = meant(reference, models)
    return found.parameters_schema if found else None


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
    names = {row.title.removesuffix(UNIFORM).strip().lower(): name for name, row in SCHEDULERS.items()}
    if kind in _NO_SCHEDULE:
        kind = _AUTOMATIC.get(given, "") if kind == "automatic" else ""
    if (title := f"{given} {kind}".strip()) in names:
        return names[title], []
    said = f"{sampler} {schedule}".strip()
    return None, [f"There is no scheduler {said} here: the model's own is used."]


def _number(text: str | None) -> int | float | None:
    """The number in a field; None for what is none."""
    for read in (int, float):
        # Some integers are past every float.
        with contextlib.suppress(ValueError, OverflowError):
            number = read(text or "")
            return number if math.isfinite(number) else None
    return None
