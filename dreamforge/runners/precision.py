"""Which element types a pipeline computes in."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open

_OF_SAFETENSORS = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def unet_dtype(device: str, stored: torch.dtype) -> torch.dtype:
    """What the UNet and the text encoders compute in, by the device and by what the weights are stored as.

    float32 on a CPU. A GPU has float16, or bfloat16 for weights that come in it and may not fit float16's range. GPUs
    before Ampere compute in bfloat16 only by a detour: there they are float16 too.
    """
    if device == "cpu":
        return torch.float32
    return torch.bfloat16 if stored == torch.bfloat16 and _computes_in_bfloat16() else torch.float16


def vae_dtype(device: str, wanted: str) -> torch.dtype:
    """What the VAE computes in: SDXL's own overflows in float16. Raises ``KeyError`` for another type.

    float32 on a CPU, and on a GPU that computes in bfloat16 only by a detour.
    """
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]
    return dtype if device != "cpu" and _computes_in_bfloat16() else torch.float32


def stored_dtype(files: Iterable[Path], *, prefix: str = "") -> torch.dtype:
    """What the first weight with this prefix is stored as; float32 where there is none.

    Raises ``SafetensorError`` or ``OSError`` for what is no safetensors file.
    """
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                if name.startswith(prefix):
                    return _OF_SAFETENSORS.get(file.get_slice(name).get_dtype(), torch.float32)
    return torch.float32


def _computes_in_bfloat16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)
