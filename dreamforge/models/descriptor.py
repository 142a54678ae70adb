"""What a model is: its descriptor, and the JSON Schema of the parameters it takes.

The schema (JSON Schema 2020-12) is what `params` of a job are checked against, where the defaults come from, and what
a client can draw a form from.
"""

from dataclasses import dataclass, field
from typing import Any

from dreamforge.jobs.image_format import DEFAULT_QUALITY, IMAGE_FORMATS
from dreamforge.jobs.presets import PRESETS
from dreamforge.jobs.schedulers import SCHEDULERS

PROMPT_LENGTH = 8192
MODEL_REFERENCE_LENGTH = 200
MOST_LORAS = 8


@dataclass(frozen=True)
class ModelFile:
    """One file; ``path`` is relative to the model's folder, ``sha256`` in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ModelDescriptor:
    """A model and everything the registry keeps of it. ``checkpoint_hash`` is a sha256 in hex."""

    name: str
    version: str
    kind: str
    source_uri: str
    checkpoint_hash: str
    parameters_schema: dict[str, Any]
    capabilities: tuple[str, ...]
    files: tuple[ModelFile, ...]
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class SizeRange:
    """Edges of an image in pixels; all are multiples of 8."""

    least: int
    most: int
    default: int


def sdxl_schema(*, size: SizeRange, default_steps: int) -> dict[str, Any]:
    """The parameters of an SDXL model.

    Beside the keywords of JSON Schema 2020-12 each property has `x-ui`, for whoever draws a form: `group` (one of the
    schema's own `x-ui.groups`) and `order`, `widget` (`textarea`, `text`, `slider`, `number`, `select`, `seed`,
    `model`, `models`), and where they mean something `step`, `unit`, `kind` (of model) and `advanced`. Choices are
    `oneOf` with a `const` and a `title` each.
    `x-presets` has what a preset gives in place of a default.
    """
    properties = [
        _property(
            "prompt",
            "Prompt",
            "What to draw.",
            **_TEXT,
            examples=["a lighthouse at dawn"],
            ui=_ui("prompt", "textarea"),
        ),
        _property(
            "negative_prompt",
            "Negative prompt",
            "What to keep out of the image.",
            **_TEXT,
            default="",
            examples=["blurry, text"],
            ui=_ui("prompt", "textarea"),
        ),
        _edge("width", "Width", size),
        _edge("height", "Height", size),
        *_sampling(default_steps),
        *_companions(),
        *_file(),
        _choice(
            "preset",
            "Preset",
            "How to trade memory, speed and quality.",
            {preset.name: preset.title for preset in PRESETS.values()},
            ui=_ui("output", "select", advanced=True),
        ),
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "title": "SDXL",
        "description": "Parameters of a Stable Diffusion XL model.",
        "required": ["prompt"],
        "additionalProperties": False,
        "properties": {
            name: {**rule, "x-ui": {**rule["x-ui"], "order": order}}
            for order, (name, rule) in enumerate(properties, start=1)
        },
        "x-ui": {"groups": [{"id": id, "title": title} for id, title in _GROUPS.items()]},
        "x-presets": {preset.name: {"steps": preset.steps} for preset in PRESETS.values() if preset.steps},
    }


_GROUPS = {"prompt": "Prompt", "size": "Size", "sampling": "Sampling", "models": "Models", "output": "Output"}
_TEXT = {"type": "string", "maxLength": PROMPT_LENGTH}
_Property = tuple[str, dict[str, Any]]


def _sampling(default_steps: int) -> list[_Property]:
    return [
        _property(
            "steps",
            "Steps",
            "Denoising steps: more take longer and add detail.",
            type="integer",
            minimum=1,
            maximum=150,
            default=default_steps,
            examples=[30],
            ui=_ui("sampling", "slider", step=1),
        ),
        _property(
            "guidance_scale",
            "Guidance scale",
            "How closely the image follows the prompt.",
            type="number",
            minimum=0.0,
            maximum=30.0,
            default=6.5,
            examples=[6.5],
            ui=_ui("sampling", "slider", step=0.5),
        ),
        _choice(
            "scheduler",
            "Scheduler",
            "How noise is taken away, step by step.",
            {name: scheduler.title for name, scheduler in SCHEDULERS.items()},
            ui=_ui("sampling", "select", advanced=True),
        ),
        _property(
            "seed",
            "Seed",
            "Image i of a job is drawn with seed + i. Null: each image draws its own.",
            type=["integer", "null"],
            minimum=0,
            maximum=2**32 - 1,
            default=None,
            examples=[7],
            ui=_ui("sampling", "seed", step=1),
        ),
    ]


def _companions() -> list[_Property]:
    lora = {
        "type": "object",
        "title": "LoRA",
        "required": ["id"],
        "additionalProperties": False,
        "properties": {
            "id": {"type": "string", "title": "LoRA", "minLength": 1, "maxLength": MODEL_REFERENCE_LENGTH},
            "weight": {"type": "number", "title": "Weight", "minimum": -4.0, "maximum": 4.0, "default": 1.0},
        },
    }
    return [
        _property(
            "loras",
            "LoRAs",
            "Models of kind lora that are added, each by its id, name or name@version, and how much.",
            type="array",
            items=lora,
            maxItems=MOST_LORAS,
            default=[],
            examples=[[{"id": "film-grain", "weight": 0.6}]],
            ui=_ui("models", "models", advanced=True, kind="lora"),
        ),
        _property(
            "vae",
            "VAE",
            "A model of kind vae in place of the model's own. Null: its own.",
            type=["string", "null"],
            minLength=1,
            maxLength=MODEL_REFERENCE_LENGTH,
            default=None,
            examples=["sdxl-vae-fp16-fix"],
            ui=_ui("models", "model", advanced=True, kind="vae"),
        ),
    ]


def _file() -> list[_Property]:
    titles = {name: format.title for name, format in IMAGE_FORMATS.items()}
    return [
        _choice("format", "File format", "What the image is saved as.", titles, ui=_ui("output", "select")),
        _property(
            "quality",
            "Quality",
            "For JPEG and WebP.",
            type="integer",
            minimum=1,
            maximum=100,
            default=DEFAULT_QUALITY,
            examples=[DEFAULT_QUALITY],
            ui=_ui("output", "slider", step=1),
        ),
    ]


def _property(name: str, title: str, description: str, *, ui: dict[str, Any], **rule: Any) -> _Property:
    return name, {"title": title, "description": description, **rule, "x-ui": ui}


def _choice(name: str, title: str, description: str, choices: dict[str, str], *, ui: dict[str, Any]) -> _Property:
    """One of several words, each with what a person reads. The first is the default."""
    one_of = [{"const": value, "title": label} for value, label in choices.items()]
    first = next(iter(choices))
    return _property(name, title, description, type="string", oneOf=one_of, default=first, examples=[first], ui=ui)


def _edge(name: str, title: str, size: SizeRange) -> _Property:
    return _property(
        name,
        title,
        "Pixels, a multiple of 8.",
        type="integer",
        minimum=size.least,
        maximum=size.most,
        multipleOf=8,
        default=size.default,
        examples=[size.default],
        ui=_ui("size", "slider", step=8, unit="px"),
    )


def _ui(group: str, widget: str, **hints: Any) -> dict[str, Any]:
    return {"group": group, "widget": widget, "advanced": False, **hints}
