"""From the names and shapes of tensors to what they are: a checkpoint, a LoRA, a VAE, and of which family.

Names are those of Stability's own files (`model.diffusion_model.…`), of kohya's LoRAs (`lora_unet_…`), and of diffusers
and PEFT (`unet.….lora_A.weight`). A family is told by the width of its cross-attention, which is that of its prompts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from dreamforge.errors import ModelIncompatible
from dreamforge.models.adapters import adapter_of, check_loadable, lora_width, names_sdxl
from dreamforge.models.precision import dtype_of
from dreamforge.models.safetensors_header import SafetensorsHeader, Tensor
from dreamforge.models.strangers import stranger


class Kind(StrEnum):
    """What a file or folder is to a job."""

    CHECKPOINT = "checkpoint"
    LORA = "lora"
    VAE = "vae"


class Architecture(StrEnum):
    """The family that weights belong to. The VAEs of SD 1, SD 2 and SDXL have the same tensors: `kl-f8`."""

    SDXL = "sdxl"
    KL_F8 = "kl-f8"


@dataclass(frozen=True)
class Expected:
    """What fits the models that are drawn with. Where nothing is said, SDXL 1.0.

    ``transformer_blocks``: how many the UNet has, None where that is not known.
    """

    cross_attention_dim: int = 2048
    latent_channels: int = 4
    transformer_blocks: int | None = 70


@dataclass(frozen=True)
class Weights:
    """What the weights are. ``dtype``: `fp16`, `bf16` or `fp32`, that of most bytes.

    ``cross_attention_dim`` is None for a VAE, and for a LoRA that changes no cross-attention; ``latent_channels`` for
    a LoRA. ``adapter`` is the LoRA's build. ``prediction``: `v_prediction` where the file says so.
    """

    kind: Kind
    architecture: Architecture
    dtype: str
    cross_attention_dim: int | None = None
    latent_channels: int | None = None
    adapter: str | None = None
    prediction: str | None = None

    def told(self) -> dict[str, str | int]:
        """What is known, as the registry's metadata keep it."""
        known = {name: value for name, value in vars(self).items() if value is not None and name != "kind"}
        return {name: str(value) if isinstance(value, StrEnum) else value for name, value in known.items()}


FAMILIES = {
    768: "Stable Diffusion 1",
    1024: "Stable Diffusion 2",
    1280: "the SDXL refiner",
    2048: "SDXL",
}
"""Who has a cross-attention of this width."""

_UNET = "model.diffusion_model."
_FIRST_LAYER = f"{_UNET}input_blocks.0.0.weight"
_VAE_PREFIXES = ("first_stage_model.", "vae.", "")
_CROSS_ATTENTION = re.compile(r"attn2\.to_k\.weight$")
_TEXT_ENCODERS = ("conditioner.embedders.0.", "conditioner.embedders.1.")
_MID_BLOCK = re.compile(r"^decoder\.(mid\.block_1|mid_block\.resnets\.0)\.")


def weights_of(header: SafetensorsHeader, *, name: str, expected: Expected) -> Weights:
    """What the file of this name holds. Raises ``ModelIncompatible`` for what nothing here can be drawn with."""
    tensors = header.tensors
    if adapter_of(tensors, name=name):
        return _lora(header, name=name, expected=expected)
    if any(tensor.startswith(_UNET) for tensor in tensors):
        return _checkpoint(header, name=name, expected=expected)
    if vae_tensors(tensors):
        return _vae(header, name=name, expected=expected)
    raise incompatible(name, f"holds {stranger(tensors) or 'weights of a kind that is not known here'}.")


def incompatible(name: str, words: str) -> ModelIncompatible:
    """The error for a file or folder that something else would be needed for."""
    return ModelIncompatible(f"{name} {words}", details={"file": name})


def family(width: int | None) -> str:
    """Whose cross-attention has this width, in words."""
    return FAMILIES.get(width, f"a model whose cross-attention is {width} wide") if width else "another model"


def vae_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's tensors without their prefix, empty where there is none."""
    for prefix in _VAE_PREFIXES:
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if any(_MID_BLOCK.match(name) for name in own):
            return own
    return {}


def cross_attention(tensors: Mapping[str, Tensor]) -> list[int]:
    """The width of each cross-attention of a UNet."""
    found = [tensor.shape for name, tensor in tensors.items() if _CROSS_ATTENTION.search(name)]
    return [shape[1] for shape in found if len(shape) == 2]


def _checkpoint(header: SafetensorsHeader, *, name: str, expected: Expected) -> Weights:
    tensors = header.tensors
    unet = {tensor: found for tensor, found in tensors.items() if tensor.startswith(_UNET)}
    if words := stranger(tensor.removeprefix(_UNET) for tensor in tensors):
        raise incompatible(name, f"holds {words}.")
    widths = cross_attention(unet)
    if set(widths) != {expected.cross_attention_dim}:
        raise incompatible(name, f"is a checkpoint of {family(max(widths, default=0))}, not of {_wanted(expected)}.")
    if expected.transformer_blocks not in {None, len(widths)}:
        words = f"has {len(widths)} transformer blocks of SDXL's {expected.transformer_blocks}"
        raise incompatible(name, f"{words}: it is a smaller model made from SDXL, as SSD-1B is.")
    first = unet.get(_FIRST_LAYER)
    check_unet_channels(first.shape[1] if first and len(first.shape) == 4 else 0, name=name, expected=expected)
    missing = [part for part, there in _parts(tensors).items() if not there]
    if missing:
        raise incompatible(name, f"is no whole checkpoint: it lacks {' and '.join(missing)}.")
    return Weights(
        kind=Kind.CHECKPOINT,
        architecture=Architecture.SDXL,
        dtype=dtype_of(tensors, name=name),
        cross_attention_dim=expected.cross_attention_dim,
        latent_channels=_latent_channels(vae_tensors(tensors), name=name, expected=expected),
        prediction=_prediction(header),
    )


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, bool]:
    return {
        "its text encoders": all(any(name.startswith(prefix) for name in tensors) for prefix in _TEXT_ENCODERS),
        "its VAE": bool(vae_tensors(tensors)),
    }


def check_unet_channels(channels: int, *, name: str, expected: Expected) -> None:
    """Raise ``ModelIncompatible`` for a UNet that takes more than latents, as those do that paint over images."""
    if channels != expected.latent_channels:
        purpose = {9: ": it is an inpainting model", 8: ": it edits images by instruction"}.get(channels, "")
        words = f"has a UNet of {channels} input channels, not {expected.latent_channels}{purpose}."
        raise incompatible(name, words)


def _prediction(header: SafetensorsHeader) -> str | None:
    says_so = "v_pred" in header.tensors or header.metadata.get("modelspec.prediction_type") in {"v", "v_prediction"}
    return "v_prediction" if says_so else None


def _vae(header: SafetensorsHeader, *, name: str, expected: Expected) -> Weights:
    return Weights(
        kind=Kind.VAE,
        architecture=Architecture.KL_F8,
        dtype=dtype_of(header.tensors, name=name),
        latent_channels=_latent_channels(vae_tensors(header.tensors), name=name, expected=expected),
    )


def _latent_channels(vae: Mapping[str, Tensor], *, name: str, expected: Expected) -> int:
    first = vae.get("decoder.conv_in.weight")
    channels = first.shape[1] if first and len(first.shape) == 4 else 0
    if channels != expected.latent_channels:
        other = " It is that of Flux or Stable Diffusion 3." if channels == 16 else ""
        words = f"has a VAE of {channels} latent channels, not {expected.latent_channels}.{other}"
        raise incompatible(name, words)
    if not any(tensor.startswith("encoder.") for tensor in vae):
        raise incompatible(name, "has a VAE without its encoder.")
    return channels


def _lora(header: SafetensorsHeader, *, name: str, expected: Expected) -> Weights:
    width = lora_width(header.tensors)
    if width is None and not names_sdxl(header):
        other = stranger(header.tensors) or "a model that it does not tell"
        raise incompatible(name, f"is a LoRA for {other}, not for {_wanted(expected)}.")
    if width not in {None, expected.cross_attention_dim}:
        raise incompatible(name, f"is a LoRA for {family(width)}, not for {_wanted(expected)}.")
    # Last: what is for another model is of no use under any name.
    check_loadable(header.tensors, name=name)
    return Weights(
        kind=Kind.LORA,
        architecture=Architecture.SDXL,
        dtype=dtype_of(header.tensors, name=name),
        cross_attention_dim=width,
        adapter=adapter_of(header.tensors, name=name),
    )


def _wanted(expected: Expected) -> str:
    width = expected.cross_attention_dim
    return FAMILIES.get(width, f"one that is {width} wide")
