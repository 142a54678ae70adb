"""Small safetensors files with the names and shapes of real ones, written without torch: their weights are zeros."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1, "I8": 1, "BOOL": 1}


def header_of(
    shapes: Shapes, *, dtype: str = "F16", metadata: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], int]:
    """The header, and how many bytes of weights there are."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + prod(shape) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    return header, end


def with_length(header: bytes) -> bytes:
    """The header as a file begins with it."""
    return len(header).to_bytes(8, "little") + header


def write(
    path: Path, shapes: Shapes, *, dtype: str = "F16", metadata: Mapping[str, str] | None = None, fill: bytes = b""
) -> Path:
    """Write the file; its weights take no room on the disk, but for what they begin with."""
    header, size = header_of(shapes, dtype=dtype, metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        begun = stream.write(with_length(json.dumps(header).encode()))
        stream.write(fill[:size])
        stream.truncate(begun + size)
    return path


def sdxl_checkpoint(*, width: int = 2048, blocks: int = 70, channels: int = 4) -> dict[str, tuple[int, ...]]:
    """Some tensors of an SDXL checkpoint in one file, as Stability's names have it, one of each transformer block."""
    unet = "model.diffusion_model"
    return {
        f"{unet}.input_blocks.0.0.weight": (8, channels, 3, 3),
        f"{unet}.label_emb.0.0.weight": (8, 8),
        **{
            f"{unet}.input_blocks.4.1.transformer_blocks.{block}.attn2.to_k.weight": (8, width)
            for block in range(blocks)
        },
        "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
        "first_stage_model.decoder.mid.block_1.norm1.weight": (8,),
        "first_stage_model.encoder.mid.block_1.norm1.weight": (8,),
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (8,),
        "conditioner.embedders.1.model.ln_final.weight": (8,),
    }


def sdxl_refiner() -> dict[str, tuple[int, ...]]:
    """The same of the refiner, which has one text encoder."""
    shapes = sdxl_checkpoint(width=1280, blocks=44)
    del shapes["conditioner.embedders.0.transformer.text_model.final_layer_norm.weight"]
    del shapes["conditioner.embedders.1.model.ln_final.weight"]
    return {**shapes, "conditioner.embedders.0.model.ln_final.weight": (8,)}


def sd_checkpoint(*, width: int = 768) -> dict[str, tuple[int, ...]]:
    """Some tensors of a Stable Diffusion 1 checkpoint, with 1024 of a Stable Diffusion 2."""
    unet = "model.diffusion_model"
    return {
        f"{unet}.input_blocks.0.0.weight": (8, 4, 3, 3),
        f"{unet}.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, width),
        "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
        "first_stage_model.decoder.mid.block_1.norm1.weight": (8,),
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": (8,),
    }


def vae(*, channels: int = 4, prefix: str = "", block: str = "mid.block_1") -> dict[str, tuple[int, ...]]:
    """Some tensors of a VAE; ``block`` is `mid.block_1` in Stability's names, `mid_block.resnets.0` in diffusers'."""
    return {
        f"{prefix}decoder.conv_in.weight": (8, channels, 3, 3),
        f"{prefix}decoder.{block}.norm1.weight": (8,),
        f"{prefix}encoder.{block}.norm1.weight": (8,),
    }


def text_encoder(*, prefix: str = "text_model.", pooled: bool = False) -> dict[str, tuple[int, ...]]:
    """Some tensors of a text encoder in diffusers' layout; ``pooled`` is the second."""
    return {
        f"{prefix}embeddings.token_embedding.weight": (8, 8),
        f"{prefix}final_layer_norm.weight": (8,),
        **({"text_projection.weight": (8, 8)} if pooled else {}),
    }


def kohya_lora(*, width: int = 2048, rank: int = 4) -> dict[str, tuple[int, ...]]:
    """A LoRA of one layer in kohya's names."""
    layer = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    return {
        f"{layer}.lora_down.weight": (rank, width),
        f"{layer}.lora_up.weight": (8, rank),
        f"{layer}.alpha": (),
    }


def peft_lora(*, width: int = 2048, rank: int = 4) -> dict[str, tuple[int, ...]]:
    """A LoRA of one layer in diffusers' names."""
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    return {f"{layer}.lora_A.weight": (rank, width), f"{layer}.lora_B.weight": (8, rank)}
