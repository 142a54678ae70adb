"""Where a pipeline's models are while it draws, and what they do without to save memory."""

from typing import Any

import torch

from dreamforge.jobs.frames import PrepareStep
from dreamforge.jobs.memory_ladder import MODEL_OFFLOAD, SEQUENTIAL_OFFLOAD, VAE_SLICING, VAE_TILING

_TILE = 512
"""Pixels a side. diffusers tiles what is larger than the VAE's training images, 1024 for SDXL: at that size nothing."""


def place(pipeline: Any, call: PrepareStep) -> Any:
    """The pipeline on the call's device, with the call's savings."""
    if VAE_TILING in call.savings:
        tile(pipeline.vae)
    if VAE_SLICING in call.savings:
        pipeline.vae.enable_slicing()
    if call.device == "cpu":
        # Offloading is to the host's memory, where it all is; and there channels last changes the last bits.
        _align(pipeline)
        return pipeline.to(call.device)
    if call.is_channels_last:
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    if SEQUENTIAL_OFFLOAD in call.savings:
        pipeline.enable_sequential_cpu_offload(device=call.device)
    elif MODEL_OFFLOAD in call.savings:
        pipeline.enable_model_cpu_offload(device=call.device)
    else:
        pipeline.to(call.device)
    return pipeline


def tile(vae: Any) -> None:
    """Have it decode in tiles of 512 pixels a side, or of its training images where those are smaller."""
    vae.enable_tiling()
    vae.tile_sample_min_size = min(_TILE, vae.tile_sample_min_size)
    vae.tile_latent_min_size = vae.tile_sample_min_size // 2 ** (len(vae.config.block_out_channels) - 1)


def _align(pipeline: Any) -> None:
    """Weights from a safetensors file lie in memory as they lie there, at any address, and a matrix product's last bits
    are by the address: the same weights from another file would draw another image.
    """
    for model in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
