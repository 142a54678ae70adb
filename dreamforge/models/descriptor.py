"""What a model is: its descriptor, and the JSON Schema of the parameters it takes.

The schema (JSON Schema 2020-12) is what `params` of a job are checked against, where the defaults come from, and what
a client can draw a form from.
"""

from dataclasses import dataclass, field
from typing import Any

from dreamforge.jobs.schedulers import SCHEDULERS

PROMPT_LENGTH = 8192


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
    """The parameters of an SDXL model."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "title": "SDXL",
        "required": ["prompt"],
        "additionalProperties": False,
        "properties": {
            "prompt": _text("Prompt", "What to draw."),
            "negative_prompt": {**_text("Negative prompt", "What to keep out of the image."), "default": ""},
            "width": _edge("Width", size),
            "height": _edge("Height", size),
            "steps": _integer("Steps", "Denoising steps.", least=1, most=150, default=default_steps),
            "guidance_scale": {
                "type": "number",
                "title": "Guidance scale",
                "description": "How closely the image follows the prompt.",
                "minimum": 0.0,
                "maximum": 30.0,
                "default": 6.5,
            },
            "scheduler": {
                "type": "string",
                "title": "Scheduler",
                "description": "How noise is taken away, step by step.",
                "enum": list(SCHEDULERS),
                "default": "euler",
            },
            "seed": {
                "type": ["integer", "null"],
                "title": "Seed",
                "description": "Image i is drawn with seed + i. Null: each image draws its own.",
                "minimum": 0,
                "maximum": 2**32 - 1,
                "default": None,
            },
            "format": {"type": "string", "title": "File format", "enum": ["png"], "default": "png"},
            "preset": {"type": "string", "title": "Preset", "enum": ["balanced"], "default": "balanced"},
        },
    }


def _text(title: str, description: str) -> dict[str, Any]:
    return {"type": "string", "title": title, "description": description, "maxLength": PROMPT_LENGTH}


def _integer(title: str, description: str, *, least: int, most: int, default: int) -> dict[str, Any]:
    return {
        "type": "integer",
        "title": title,
        "description": description,
        "minimum": least,
        "maximum": most,
        "default": default,
    }


def _edge(title: str, size: SizeRange) -> dict[str, Any]:
    rule = _integer(title, "Pixels, a multiple of 8.", least=size.least, most=size.most, default=size.default)
    return {**rule, "multipleOf": 8}
