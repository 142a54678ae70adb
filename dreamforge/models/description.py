"""From what a model is to what the registry keeps of it."""

from typing import Any

from dreamforge.models.descriptor import ModelDescriptor, SizeRange, sdxl_schema
from dreamforge.models.inspection import Inspection
from dreamforge.models.weights import Kind

KINDS = {Kind.CHECKPOINT: "sdxl", Kind.LORA: "lora", Kind.VAE: "vae"}
"""The registry's word for each: for a checkpoint the runner's."""

_SMALL_EDGE = 256
_TITLES = {"lora": "LoRA", "vae": "VAE"}


def describe(found: Inspection, *, name: str, version: str) -> ModelDescriptor:
    """The descriptor of a model that stays where it was found."""
    word = KINDS[found.kind]
    is_checkpoint = found.kind is Kind.CHECKPOINT
    return ModelDescriptor(
        name=name,
        version=version,
        kind=word,
        source_uri=found.path.as_uri(),
        checkpoint_hash=found.checkpoint_hash,
        parameters_schema=_checkpoint_schema(found.edge or 1024) if is_checkpoint else no_parameters(_TITLES[word]),
        capabilities=("generate",) if is_checkpoint else (),
        files=found.files,
        metadata=found.metadata,
    )


def no_parameters(title: str) -> dict[str, Any]:
    """The schema of what no job can be run with by itself."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "title": title,
        "description": f"A {title} has no parameters: it goes with a checkpoint.",
        "additionalProperties": False,
        "properties": {},
    }


def _checkpoint_schema(edge: int) -> dict[str, Any]:
    if edge < _SMALL_EDGE:
        return sdxl_schema(size=SizeRange(least=64, most=512, default=edge), default_steps=4)
    return sdxl_schema(size=SizeRange(least=_SMALL_EDGE, most=2048, default=edge), default_steps=30)
