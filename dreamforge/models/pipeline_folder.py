"""Folders as diffusers saves them: a whole SDXL pipeline, or a VAE alone."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dreamforge.errors import ModelCorrupt
from dreamforge.models.component_configs import (
    SD_SCALING,
    ComponentConfigs,
    check_scheduler,
    read_configs,
    read_vae_config,
)
from dreamforge.models.component_weights import ComponentWeights, pickles_in, read_component
from dreamforge.models.precision import dtype_of
from dreamforge.models.weights import (
    FAMILIES,
    Architecture,
    Expected,
    Kind,
    Weights,
    check_unet_channels,
    cross_attention,
    family,
    incompatible,
    weights_of,
)

_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_TOKENIZERS = ("tokenizer", "tokenizer_2")
# Without a tokenizer_config.json it is CLIP's all the same.
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_SCHEDULER = "scheduler/scheduler_config.json"
# Which of them have `text_model.` in front goes by the version of transformers.
_TEXT_MODEL = (
    re.compile(r"^(text_model\.)?embeddings\.token_embedding\.weight$"),
    re.compile(r"^(text_model\.)?final_layer_norm\.weight$"),
)
_TEXT_ENCODERS = {
    "text_encoder": _TEXT_MODEL,
    "text_encoder_2": (*_TEXT_MODEL, re.compile(r"^text_projection\.weight$")),
}
"""What tells an encoder: the second one's prompt is pooled too."""


@dataclass(frozen=True)
class FolderFindings:
    """What a folder holds. ``variant``: `fp16` where some weights are only in files of that variant."""

    weights: Weights
    edge: int | None = None
    variant: str | None = None
    scaling_factor: float | None = None
    warnings: tuple[str, ...] = ()


def read_pipeline(folder: Path) -> FolderFindings:
    """Check an SDXL pipeline's folder for what it cannot draw without.

    Raises ``ModelCorrupt`` and ``ModelIncompatible``.
    """
    configs = read_configs(folder)
    check_scheduler(folder / _SCHEDULER, name=_SCHEDULER)
    for tokenizer in _TOKENIZERS:
        _check_vocabulary(folder / tokenizer, name=tokenizer)
    parts = {part: read_component(folder / part, name=part) for part in _PARTS}
    dtypes = {part: dtype_of(found.tensors, name=part) for part, found in parts.items()}
    weights_of(parts["vae"].header(), name="vae", expected=configs.expected())
    _check_unet(parts["unet"], configs, name=folder.name)
    for encoder, needed in _TEXT_ENCODERS.items():
        _check_text_encoder(parts[encoder], needed, name=encoder)
    return FolderFindings(
        weights=Weights(
            kind=Kind.CHECKPOINT,
            architecture=Architecture.SDXL,
            dtype=dtypes["unet"],
            cross_attention_dim=configs.cross_attention_dim,
            latent_channels=configs.latent_channels,
        ),
        edge=configs.edge,
        variant=next((found.variant for found in parts.values() if found.variant), None),
        scaling_factor=configs.scaling_factor,
        warnings=_warnings(folder),
    )


def read_vae_folder(folder: Path, *, expected: Expected) -> FolderFindings:
    """Check the folder of a VAE alone. Raises ``ModelCorrupt`` and ``ModelIncompatible``."""
    config = read_vae_config(folder / "config.json", name=f"{folder.name}/config.json")
    found = read_component(folder, name=folder.name)
    weights = weights_of(found.header(), name=folder.name, expected=expected)
    # The only thing that tells them apart: their tensors have the same names and shapes.
    if config.scaling_factor == SD_SCALING:
        raise incompatible(folder.name, "is the VAE of Stable Diffusion 1 or 2, by its scaling factor, not of SDXL.")
    return FolderFindings(weights=weights, variant=found.variant, scaling_factor=config.scaling_factor)


def check_configuration(folder: Path) -> None:
    """Raise ``ModelCorrupt`` where a folder that describes a single file lacks what it is to be drawn with.

    Tokenizers need no vocabulary of their own: without one it is CLIP's.
    """
    check_scheduler(folder / _SCHEDULER, name=_SCHEDULER)
    for tokenizer in _TOKENIZERS:
        if not (folder / tokenizer / "tokenizer_config.json").is_file():
            _check_vocabulary(folder / tokenizer, name=tokenizer)


def _check_unet(unet: ComponentWeights, configs: ComponentConfigs, *, name: str) -> None:
    width = configs.cross_attention_dim
    if set(cross_attention(unet.tensors)) != {width}:
        raise incompatible("unet", f"has other weights than its configuration says: not {width} wide.")
    if width in FAMILIES and width != Expected().cross_attention_dim:
        raise incompatible(name, f"is a model of {family(width)}, not of SDXL.")
    check_unet_channels(configs.unet_channels, name=name, expected=configs.expected())


def _check_vocabulary(folder: Path, *, name: str) -> None:
    if not any(all((folder / file).is_file() for file in files) for files in _VOCABULARIES):
        words = f"{name} has no vocabulary: a tokenizer.json, or a vocab.json and a merges.txt."
        raise ModelCorrupt(words, details={"file": name, "reason": "missing"})


def _check_text_encoder(encoder: ComponentWeights, needed: Iterable[re.Pattern[str]], *, name: str) -> None:
    if not all(any(pattern.match(tensor) for tensor in encoder.tensors) for pattern in needed):
        words = f"{name} has other weights than those of a text encoder of SDXL."
        raise ModelCorrupt(words, details={"file": name, "reason": "other_weights"})


def _warnings(folder: Path) -> tuple[str, ...]:
    pickles = [path.relative_to(folder).as_posix() for part in _PARTS for path in pickles_in(folder / part)]
    return tuple(f"{path} is a pickle, which is never loaded: it only takes room." for path in pickles)
