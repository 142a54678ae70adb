"""LoRAs and their relatives, told by the names of their tensors."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

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
# The names that diffusers loads. One of another kind in the file makes it refuse the whole, or it passes over it
# without a word; so it does with half of a file that has both kohya's names and its own.
_FORMATS = (
    (re.compile(r"(?P<layer>lora_(unet|te|te1|te2)_[^.]+)\.(?P<side>alpha|lora_(down|up)\.weight)$"),),
    (
        re.compile(r"(?P<layer>(unet|text_encoder(_2)?)\..+)\.(?P<side>lora_[AB])\.weight$"),
        re.compile(r"(?P<layer>unet\..+)[._](?P<side>lora\.(down|up))\.weight$"),
        re.compile(r"(?P<layer>text_encoder(_2)?\..+)\.(?P<side>lora_linear_layer\.(down|up))\.weight$"),
        re.compile(r"(?P<layer>text_encoder(_2)?\..+\.to_(q|k|v|out))_(?P<side>lora\.(down|up))\.weight$"),
    ),
)
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


def check_loadable(tensors: Mapping[str, Tensor], *, name: str) -> None:
    """Raise ``ModelIncompatible`` for a LoRA with anything in it that diffusers does not load."""
    strays = [_strays(tensors, patterns) for patterns in _FORMATS]
    if all(strays):
        stray = min(strays, key=len)[0][:100]
        words = f"is a LoRA that cannot be loaded for its {stray!r}; kohya's LoRAs and diffusers' can be."
        raise ModelIncompatible(f"{name} {words}", details={"file": name, "tensor": stray})


def _strays(tensors: Iterable[str], patterns: Sequence[re.Pattern[str]]) -> list[str]:
    """The tensors that are none of these, and the layers that have not both sides."""
    strays: list[str] = []
    sides: defaultdict[str, set[str]] = defaultdict(set)
    for tensor in tensors:
        found = next((match for pattern in patterns if (match := pattern.match(tensor))), None)
        if found is None:
            strays.append(tensor)
        else:
            sides[found["layer"]].add(found["side"])
    return strays + [layer for layer, there in sides.items() if len(there - {"alpha"}) != 2]


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
