"""Which of a repository's or a folder's files are the model: what SDXL needs, in one variant, and nothing else.

The layout is diffusers': see `save_pretrained`, and `_add_variant` in its utils/hub_utils.py for the names of variants
and shards.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from dreamforge.errors import InvalidRequest, ModelCorrupt, ModelIncompatible, SourceNotFound
from dreamforge.models.component_configs import MODEL_INDEX, PIPELINE
from dreamforge.models.component_weights import VARIANT
from dreamforge.models.file_names import PICKLES
from dreamforge.models.inspection import LORA_FILE
from dreamforge.models.safetensors_header import CONVERT
from dreamforge.models.weights import Kind

_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_TOKENIZERS = ("tokenizer", "tokenizer_2")
_VOCABULARY = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
)
_SCHEDULER = "scheduler/scheduler_config.json"
_STEMS = ("diffusion_pytorch_model", "model")
_SUFFIX = ".safetensors"
_VAE = "AutoencoderKL"
_MOST_CHOICES = 20


@dataclass(frozen=True)
class Selection:
    """The files of a model. ``main``: the one that is the model; None when all of them are."""

    paths: tuple[str, ...]
    main: str | None = None
    kind: Kind | None = None


@dataclass(frozen=True)
class Offer:
    """What there is to choose from.

    ``name``: for a person. ``paths``: of all files. ``build``: the class of diffusers that it is for, where that is
    known. ``reference_to``: how to ask for one of the files.
    """

    name: str
    paths: Collection[str]
    reference_to: Callable[[str], str]
    build: str | None = None


def select(offer: Offer) -> Selection:
    """The model in there: a pipeline, a LoRA, a VAE or a single file, the first of these that there is.

    Weights of half precision are preferred: they are half the bytes, and what a GPU computes with.

    Raises ``ModelIncompatible`` for a pipeline that is not SDXL's, ``ModelCorrupt`` for one that lacks weights and for
    pickles alone, ``SourceNotFound`` where there is nothing, ``InvalidRequest`` that lists several single files.
    """
    paths = frozenset(offer.paths)
    if MODEL_INDEX in paths:
        return _pipeline(offer, paths)
    if LORA_FILE in paths:
        return Selection((LORA_FILE,), main=LORA_FILE, kind=Kind.LORA)
    if "config.json" in paths and (weights := _weights(paths, "")):
        if offer.build not in (None, _VAE):
            raise ModelIncompatible(f"{offer.name} is a {offer.build}; SDXL's models, LoRAs and VAEs are drawn with.")
        return Selection(("config.json", *weights), kind=Kind.VAE)
    return _single(offer, paths)


def _pipeline(offer: Offer, paths: frozenset[str]) -> Selection:
    if offer.build is not None and not offer.build.startswith(PIPELINE):
        words = f"{offer.name} is a {offer.build}; models of a {PIPELINE}Pipeline are drawn with."
        raise ModelIncompatible(words)
    configs = [MODEL_INDEX, _SCHEDULER, *(f"{part}/config.json" for part in _PARTS)]
    missing = sorted(path for path in configs if path not in paths)
    if missing:
        words = f"{offer.name} is no whole SDXL model: it has no {missing[0]}."
        raise ModelIncompatible(words, details={"missing": missing})
    chosen = [*configs, *(f"{folder}/{name}" for folder in _TOKENIZERS for name in _VOCABULARY)]
    for part in _PARTS:
        weights = _weights(paths, f"{part}/")
        if not weights:
            raise _without_weights(offer, [path for path in paths if path.startswith(f"{part}/")], of=f"the {part} of ")
        chosen += weights
    return Selection(tuple(path for path in chosen if path in paths), kind=Kind.CHECKPOINT)


def _weights(paths: frozenset[str], folder: str) -> list[str]:
    """The weights of one component, with their index where there are several files; empty when there are none."""
    for variant in (f".{VARIANT}", ""):
        for stem in _STEMS:
            whole = f"{folder}{stem}{variant}{_SUFFIX}"
            index = f"{folder}{stem}{_SUFFIX}.index{variant}.json"
            if whole in paths:
                return [whole]
            if index in paths and (shards := _shards(paths, f"{folder}{stem}", variant)):
                return [index, *shards]
    return []


def _shards(paths: frozenset[str], stem: str, variant: str) -> list[str]:
    """All shards of this variant, none where one is missing."""
    # Where the variant's name stands has changed with diffusers' versions.
    number, word = r"-(\d{5})-of-(\d{5})", re.escape(variant)
    pattern = re.compile(rf"{re.escape(stem)}(?:{word}{number}|{number}{word}){re.escape(_SUFFIX)}")
    found = {path: match for path in sorted(paths) if (match := pattern.fullmatch(path))}
    counts = {int(match[2] or match[4]) for match in found.values()}
    return list(found) if counts == {len(found)} else []


def _single(offer: Offer, paths: frozenset[str]) -> Selection:
    weights = sorted(path for path in paths if path.endswith(_SUFFIX))
    if not weights:
        raise _without_weights(offer, paths)
    if len(weights) > 1:
        shown = ", ".join(offer.reference_to(path) for path in weights[:_MOST_CHOICES])
        more = f" and {len(weights) - _MOST_CHOICES} more" if len(weights) > _MOST_CHOICES else ""
        words = f"{offer.name} has several files that may be meant. Say which: {shown}{more}."
        raise InvalidRequest(words, details={"choices": [offer.reference_to(path) for path in weights]})
    return Selection((weights[0],), main=weights[0])


def _without_weights(offer: Offer, paths: Collection[str], *, of: str = "") -> ModelCorrupt | SourceNotFound:
    pickles = sorted(path for path in paths if path.lower().endswith(PICKLES))
    if pickles:
        words = f"The weights of {of}{offer.name} are in pickles only, {pickles[0]} first. {CONVERT}"
        return ModelCorrupt(words, details={"file": pickles[0], "reason": "pickle"})
    return SourceNotFound(f"There are no safetensors files in {of}{offer.name}.")
