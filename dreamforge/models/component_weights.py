"""The weights of one component of a model in diffusers' layout: one file, or several with an index."""

from dataclasses import dataclass
from pathlib import Path

from dreamforge.errors import ModelCorrupt
from dreamforge.models.component_configs import read_json
from dreamforge.models.safetensors_header import CONVERT, LONGEST_HEADER, SafetensorsHeader, Tensor, read_header

VARIANT = "fp16"
"""The one variant that is looked for where a folder has no weights without one."""

_STEMS = ("diffusion_pytorch_model", "model")
_PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl"})


@dataclass(frozen=True)
class ComponentWeights:
    """What was found. ``variant``: `fp16` where only such files are there."""

    tensors: dict[str, Tensor]
    variant: str | None

    def header(self) -> SafetensorsHeader:
        """As if all were in one file."""
        return SafetensorsHeader(tensors=self.tensors, metadata={}, data_offset=0)


def read_component(folder: Path, *, name: str) -> ComponentWeights:
    """Check the headers of a component's weights. Raises ``ModelCorrupt`` for what is missing or broken."""
    for variant in (None, VARIANT):
        for stem in _STEMS:
            whole = folder / (f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors")
            index = folder / f"{stem}.safetensors.index{f'.{variant}' if variant else ''}.json"
            if whole.is_file():
                return ComponentWeights(dict(_header(whole, name=name).tensors), variant)
            if index.is_file():
                return ComponentWeights(_sharded(index, name=name), variant)
    pickles = pickles_in(folder)
    if pickles:
        words = f"{name} has its weights in a pickle, {pickles[0].name}. {CONVERT}"
        raise ModelCorrupt(words, details={"file": f"{name}/{pickles[0].name}", "reason": "pickle"})
    raise ModelCorrupt(f"{name} has no weights in safetensors files.", details={"file": name, "reason": "missing"})


def pickles_in(folder: Path) -> list[Path]:
    """The files of this folder that are pickles by their names."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in _PICKLES)


def _sharded(index: Path, *, name: str) -> dict[str, Tensor]:
    shown = f"{name}/{index.name}"
    places = read_json(index, name=shown, most=LONGEST_HEADER).get("weight_map")
    if not isinstance(places, dict) or not all(_is_name(place) for place in places.values()):
        raise ModelCorrupt(f"{shown} does not say where the weights are.", details={"file": shown, "reason": "config"})
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        path = index.parent / shard
        if not path.is_file():
            missing = f"{name}/{shard}"
            raise ModelCorrupt(f"{missing} is missing.", details={"file": missing, "reason": "missing"})
        tensors |= _header(path, name=name).tensors
    if lost := sorted(set(places) - set(tensors)):
        words = f"{shown} names {lost[0][:100]!r}, which is in no file."
        raise ModelCorrupt(words, details={"file": shown, "reason": "missing"})
    return tensors


def _is_name(place: object) -> bool:
    return isinstance(place, str) and place.endswith(".safetensors") and "/" not in place and "\\" not in place


def _header(path: Path, *, name: str) -> SafetensorsHeader:
    try:
        return read_header(path)
    except ModelCorrupt as error:
        details = {**error.details, "file": f"{name}/{path.name}"}
        raise ModelCorrupt(f"{name}/{error.message}", details=details) from error
