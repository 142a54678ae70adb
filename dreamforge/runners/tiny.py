"""A complete SDXL pipeline of a few megabytes with random weights: `python -m dreamforge.runners.tiny FOLDER`.

It draws noise, and everything around it is real: diffusers folders, safetensors, two text encoders, the scheduler's
configuration of SDXL 1.0. Every build gives the same bytes.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from dreamforge.runners.vocabulary import END, START, TOKENS, vocabulary

_SEED = 20_260_101
_WIDTHS = (32, 48)
"""Of the text encoders: different ones, so that nothing that mixes them up goes unseen."""


def build(folder: Path) -> None:
    """Write the model to ``folder``, which appears only when it is whole."""
    # By process: two that build at once do not write into each other's folder.
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.unfinished")
    try:
        _pipeline().save_pretrained(unfinished, safe_serialization=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _pipeline() -> Any:
    pipeline: Any = StableDiffusionXLPipeline
    return pipeline(
        vae=_vae(),
        text_encoder=_text_encoder(),
        text_encoder_2=_text_encoder_2(),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=_unet(),
        scheduler=_scheduler(),
        add_watermarker=False,
    )


def _tokenizer() -> CLIPTokenizer:
    # Bytes and nothing merged: CLIP's own vocabulary would be most of the model.
    return CLIPTokenizer(vocab=vocabulary([]), merges=[], model_max_length=TOKENS)


def _text_config(width: int) -> CLIPTextConfig:
    words = vocabulary([])
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        hidden_act="gelu",
        bos_token_id=words[START],
        eos_token_id=words[END],
        pad_token_id=words[END],
    )


def _text_encoder() -> CLIPTextModel:
    torch.manual_seed(_SEED)
    return CLIPTextModel(_text_config(_WIDTHS[0]))


def _text_encoder_2() -> CLIPTextModelWithProjection:
    torch.manual_seed(_SEED + 1)
    return CLIPTextModelWithProjection(_text_config(_WIDTHS[1]))


def _unet() -> UNet2DConditionModel:
    torch.manual_seed(_SEED)
    unet: Any = UNet2DConditionModel  # its annotations say that every tuple has one element
    return unet(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=sum(_WIDTHS),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        # Six sizes of 8 and the second encoder's pooled prompt.
        projection_class_embeddings_input_dim=6 * 8 + _WIDTHS[1],
    )


def _vae() -> AutoencoderKL:
    torch.manual_seed(_SEED)
    vae: Any = AutoencoderKL  # as above
    return vae(
        sample_size=64,
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        scaling_factor=0.13025,
        force_upcast=True,
    )


def _scheduler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m dreamforge.runners.tiny FOLDER")
    build(Path(sys.argv[1]))
