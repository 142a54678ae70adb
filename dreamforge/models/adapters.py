"""LoRAs and their relatives, told by the names of their tensors."""

import re
from collections.abc import Mapping

from dreamforge.errors import ModelIncompatible
from dreamforge.models.safetensors_header import SafetensorsHeader, Tensor

LOADABLE = frozenset({"lora"})
"""The builds that can be drawn with."""

# The first that fits names the build: a DoRA has a LoRA's tensors too.
_BUILDS = (
    ("loha", "a LoHa", re.compile(r"\.hada_w[12]_[ab]$")),
    ("lokr", "a LoKr", re.compile(r"\.lokr_(w[12]|t2)(_[ab])?$")),
    ("oft", "an OFT", re.compile(r"\.(oft_blocks|oft_diag|oft_R\..*)$")),
    ("glora", "a GLoRA", re.compile(r"\.[ab][12]\.weight$")),
    ("ia3", "an IA3", re.compile(r"\.on_input$")),
    ("dora", "a DoRA", re.compile(r"\.(dora_scale|lora_magnitude_vector(\..*)?)$")),
    ("lora", "a LoRA", re.compile(r"(\.lora_(down|up|mid)|\.lora_[AB](\.default)?|[._]lora\.(down|up))\.weight$")),
    ("lora", "a LoRA", re.compile(r"\.lora_linear_layer\.(down|up)\.weight$")),
)
# How a LoRA's tensors begin. GLoRA's and IA3's endings mean nothing without it.
_OF_A_LAYER = re.compile(r"^(lora_|lycoris_|oft_|unet\.|text_encoder|transformer\.|diffusion_model\.)")
_ANY_LORA = re.compile(r"\.lora_([AB]|down|up)\b")
_DOWN = r"(lora_down|lora_A(\.default)?|lora\.down|lora_linear_layer\.down)\.weight$"
_CROSS_ATTENTION = re.compile(rf"attn2[._](processor[._])?to_[kv][._]{_DOWN}")
_SECOND_TEXT_ENCODER = re.compile(r"^(lora_te2_|text_encoder_2\.)")


def adapter_of(tensors: Mapping[str, Tensor], *, name: str) -> str | None:
    """The build of a LoRA, as `lora`; None for what is none.

    Raises ``ModelIncompatible`` for a relative that cannot be drawn with: LoHa, LoKr, OFT, GLoRA, IA3, DoRA.
    """
    named = [tensor for tensor in tensors if _OF_A_LAYER.match(tensor)]
    for build, words, pattern in _BUILDS:
        if any(pattern.search(tensor) for tensor in named):
            if build not in LOADABLE:
                raise ModelIncompatible(f"{name} is {words}; only LoRAs can be drawn with.", details={"file": name})
            return build
    if any(_ANY_LORA.search(tensor) for tensor in tensors):
        raise ModelIncompatible(
            f"{name} is a LoRA that names its layers in a way that is not known here; kohya's and diffusers' are.",
            details={"file": name},
        )
    return None


def lora_width(tensors: Mapping[str, Tensor]) -> int | None:
    """How wide the cross-attention is that a LoRA changes; None where it changes none."""
    widths = {tensor.shape[1] for name, tensor in tensors.items() if _CROSS_ATTENTION.search(name) and tensor.shape[1:]}
    return max(widths, default=None)


def names_sdxl(header: SafetensorsHeader) -> bool:
    """True for a LoRA that tells by other means that it is one of SDXL, which alone has two text encoders."""
    base = header.metadata.get("ss_base_model_version", ""), header.metadata.get("modelspec.architecture", "")
    return (
        base[0].startswith("sdxl")
        or base[1].startswith("stable-diffusion-xl")
        or any(_SECOND_TEXT_ENCODER.match(name) for name in header.tensors)
    )
