"""A whole SDXL with random weights in bfloat16: `python -m tests.gpu.weights FOLDER full cuda`.

It computes what the real one computes, with noise for an image. At full size it has 2.6 billion parameters in its UNet
and takes 7 GB on disk, and as much on the device that makes it.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from dreamforge.runners import tiny
from dreamforge.runners.vocabulary import SDXL_BASE, tokenizer
from tests.gpu.subject import TINY

_SEED = 20_260_101
_SHARD = "2GB"
"""Of a file. What is written goes through the host's memory file by file."""
_OF_DIFFUSERS: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
_OF_TRANSFORMERS: dict[str, Any] = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}


def build(folder: Path, size: str, device: str) -> None:
    """Write the model to ``folder``: of SDXL 1.0's shape, or of the tiny model's."""
    if size != TINY:
        draw(folder, shape=SDXL_BASE, device=device)
        return
    with tempfile.TemporaryDirectory() as scratch:
        tiny.build(shape := Path(scratch) / "tiny")
        draw(folder, shape=shape, device=device)


def draw(folder: Path, *, shape: Path, device: str) -> None:
    """Write a model with random weights to ``folder``. ``shape`` is the folder of its components' configurations."""
    generator = torch.Generator(device).manual_seed(_SEED)
    pipeline: Any = StableDiffusionXLPipeline
    pipeline(
        scheduler=EulerDiscreteScheduler.from_pretrained(str(shape), subfolder="scheduler"),
        tokenizer=tokenizer(shape / "tokenizer"),
        tokenizer_2=tokenizer(shape / "tokenizer_2"),
        **{name: _random(model, device, generator) for name, model in _models(shape).items()},
        add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True, max_shard_size=_SHARD)


def _models(shape: Path) -> dict[str, Any]:
    """Without data."""
    with torch.device("meta"):
        return {
            **{
                name: kind.from_config(kind.load_config(str(shape), subfolder=name))
                for name, kind in _OF_DIFFUSERS.items()
            },
            **{name: kind(CLIPTextConfig.from_pretrained(shape / name)) for name, kind in _OF_TRANSFORMERS.items()},
        }


@torch.no_grad()
def _random(model: Any, device: str, generator: torch.Generator) -> Any:
    model = model.to(torch.bfloat16).to_empty(device=device)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.zero_()
        elif weight.ndim == 1:
            # Of a normalisation.
            weight.fill_(1)
        else:
            # What comes out of a layer is as large as what goes in: nothing overflows on the way.
            weight.normal_(0, weight[0].numel() ** -0.5, generator=generator)
    return model


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python -m tests.gpu.weights FOLDER tiny|full cpu|cuda")
    build(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
