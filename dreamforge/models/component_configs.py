"""The JSON files of a model in diffusers' layout: which pipeline it is, and the sizes of its parts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from dreamforge.errors import ModelCorrupt
from dreamforge.models.weights import Expected, incompatible

MODEL_INDEX = "model_index.json"
PIPELINE = "StableDiffusionXL"
LARGEST_CONFIG = 1024 * 1024
"""Bytes of a JSON file; those of diffusers have 2 KB, its indexes of shards more."""
LARGEST_EDGE = 2048
SD_SCALING = 0.18215
"""The scaling factor of Stable Diffusion's VAEs, 1 and 2; a configuration that says none has this one."""

_LIBRARIES = frozenset({"diffusers", "transformers"})
_LARGEST_SCALING = 100
_PREDICTIONS = frozenset({"epsilon", "v_prediction"})
_SPACINGS = frozenset({"leading", "linspace", "trailing"})
_BETA_SCHEDULES = frozenset({"linear", "scaled_linear", "squaredcos_cap_v2"})
_NO_BETAS = ("EDM", "FlowMatch")
_NEEDED = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae")


@dataclass(frozen=True)
class ComponentConfigs:
    """What a pipeline's configurations say. ``edge``: pixels of the images that it was trained on."""

    cross_attention_dim: int
    unet_channels: int
    latent_channels: int
    scaling_factor: float
    edge: int

    def expected(self) -> Expected:
        """What weights have to be like to fit."""
        return Expected(
            cross_attention_dim=self.cross_attention_dim,
            latent_channels=self.latent_channels,
            transformer_blocks=None,
        )


def read_configs(folder: Path) -> ComponentConfigs:
    """The configurations of an SDXL pipeline's folder.

    Raises ``ModelCorrupt`` for one that lacks or garbles them, ``ModelIncompatible`` for another pipeline's, and for
    one whose parts are not all diffusers' and transformers' own: the code of others is not run.
    """
    index = read_json(folder / MODEL_INDEX, name=MODEL_INDEX)
    pipeline = str(index.get("_class_name"))[:100]
    if not pipeline.startswith(PIPELINE):
        raise incompatible(folder.name, f"is a {pipeline}; models of a {PIPELINE}Pipeline are drawn with.")
    for part in _NEEDED:
        _check_part(folder, part, index.get(part))
    unet = read_json(folder / "unet" / "config.json", name="unet/config.json")
    vae = read_vae_config(folder / "vae" / "config.json", name="vae/config.json")
    return ComponentConfigs(
        cross_attention_dim=_number(unet, "cross_attention_dim", name="unet/config.json"),
        unet_channels=_number(unet, "in_channels", name="unet/config.json"),
        latent_channels=vae.latent_channels,
        scaling_factor=vae.scaling_factor,
        edge=_edge(unet.get("sample_size"), factor=vae.factor),
    )


@dataclass(frozen=True)
class VaeConfig:
    """What a VAE's configuration says. ``factor``: pixels to each edge of a latent."""

    latent_channels: int
    scaling_factor: float
    factor: int


def read_vae_config(path: Path, *, name: str) -> VaeConfig:
    """The configuration of a VAE. Raises ``ModelCorrupt``, and ``ModelIncompatible`` for one of another build."""
    config = read_json(path, name=name)
    build = str(config.get("_class_name", "AutoencoderKL"))[:100]
    if build != "AutoencoderKL":
        raise incompatible(name, f"is of a {build}; a VAE is an AutoencoderKL here.")
    match config.get("scaling_factor", SD_SCALING), config.get("block_out_channels", [0]):
        case scaling_factor, [*blocks] if _is_scaling(scaling_factor) and len(blocks) in range(1, 9):
            return VaeConfig(
                latent_channels=_number(config, "latent_channels", name=name),
                scaling_factor=float(scaling_factor),
                factor=2 ** (len(blocks) - 1),
            )
        case _:
            raise _garbled(name)


def check_scheduler(path: Path, *, name: str) -> None:
    """Raise ``ModelCorrupt`` for the configuration of a scheduler that no image can be drawn with."""
    config = read_json(path, name=name)
    build = str(config.get("_class_name", ""))[:100]
    if build.startswith(_NO_BETAS):
        raise incompatible(name, f"is of a {build}, which goes by another kind of noise than SDXL's.")
    for key, usual, known in (
        ("prediction_type", "epsilon", _PREDICTIONS),
        ("timestep_spacing", "linspace", _SPACINGS),
        ("beta_schedule", "linear", _BETA_SCHEDULES),
    ):
        said = usual if config.get(key) is None else config[key]
        if not isinstance(said, str) or said not in known:
            words = f"{name} has a {key} of {str(said)[:100]!r}; {', '.join(sorted(known))} can be drawn with."
            raise ModelCorrupt(words, details={"file": name, "reason": "config"})


def read_json(path: Path, *, name: str, most: int = LARGEST_CONFIG) -> dict[str, Any]:
    """The object in a file of ``most`` bytes at most. Raises ``ModelCorrupt``."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(most + 1)
        content = json.loads(raw, parse_constant=_no_number) if len(raw) <= most else None
    except (OSError, ValueError, RecursionError) as error:
        raise _garbled(name) from error
    if not isinstance(content, dict):
        raise _garbled(name)
    return content


def _no_number(word: str) -> None:
    """`NaN` and `Infinity` are no JSON, and no database takes them for it."""
    raise ValueError(word)


def _is_scaling(value: object) -> TypeGuard[int | float]:
    """True for what latents can be scaled by: float() refuses hundreds of digits, a database what is not finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _LARGEST_SCALING


def _garbled(name: str) -> ModelCorrupt:
    return ModelCorrupt(f"{name} is missing or garbled.", details={"file": name, "reason": "config"})


def _check_part(folder: Path, part: str, entry: object) -> None:
    match entry:
        case [str(library), str()] if library in _LIBRARIES:
            pass
        case [str(library), str()]:
            raise incompatible(folder.name, f"has a {part} from {library[:100]!r}: the code of others is not run.")
        case _ if part == "text_encoder":
            raise incompatible(folder.name, "has no first text encoder: it is the SDXL refiner, not SDXL.")
        case _:
            raise incompatible(folder.name, f"is no whole model: it has no {part}.")


def _number(config: dict[str, Any], key: str, *, name: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or not 0 < value < 2**20:
        raise _garbled(name)
    return value


def _edge(sample_size: object, *, factor: int) -> int:
    """Where the configuration does not say it, as SDXL 1.0."""
    edge = sample_size * factor if isinstance(sample_size, int) else 0
    return edge if 64 <= edge <= LARGEST_EDGE and edge % 8 == 0 else 1024
