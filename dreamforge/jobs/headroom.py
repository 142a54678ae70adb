"""Whether an SDXL step fits the GPU: an estimate of its peak before anything is loaded. Pure.

It counts what torch allocates, as `torch.cuda.max_memory_allocated` does: without the CUDA context, some 0.4 GB.

Weights, in float16: 2.567 billion of the UNet (5.14 GB), 0.818 of the two text encoders (1.64 GB), 0.084 of the VAE
(0.17 GB); 6.94 GB in all. Every SDXL model has as many. Larger files hold wider elements, or hold them twice, and are
loaded as float16 all the same.

Activations, values for each pixel of the image:

* VAE: decoding is largest in its last up block, where three tensors of 256 channels at full size are alive at once
  (the block's input, its normalised form, and the activation of that): 768. cuDNN copies them to its own layout: one
  tensor more in float32 (1024), two in half precision (1280). The second is what the measured peaks leave.
* UNet: largest where the feed-forward of a 640-channel block widens at half the latents' size, with the skips of the
  way down kept: 158 bytes in float16 for each image, and as much again for cuDNN's copies. Guided, each image is
  denoised twice at once. Attention takes no more than its input: `scaled_dot_product_attention` keeps no scores.

768 and 158 are the live tensors' sizes, added up over a pass through diffusers' `AutoencoderKL.decode` and
`UNet2DConditionModel` in SDXL 1.0's configuration; both are the same at every size. Published peaks at 1024x1024 that
the estimate is held against: 8.96 GiB for one image all in bfloat16 (huggingface/diffusion-fast, results in
sayakpaul/sample-datasets); four images with the VAE in float32, 21.72 GiB, with model offload 20.21, with sequential
offload 19.91 (huggingface/blog, simple_sdxl_optimizations.md). That table's row with VAE slicing, 15.40 GiB, is half
as much again as the estimate: there denoising eight latents is the peak, of which this makes less.

It errs on letting a step run. One that does not fit after all fails with the same code, and the memory ladder is there
to catch it; one that is refused without need is lost. Hence `_BENEFIT_OF_DOUBT`.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from dreamforge.errors import OutOfMemory
from dreamforge.jobs.advice import MORE_MEMORY, smaller_size, thriftier_presets, try_preset, try_size
from dreamforge.jobs.memory_ladder import (
    LAST_RUNG,
    MODEL_OFFLOAD,
    SEQUENTIAL_OFFLOAD,
    VAE_SLICING,
    VAE_TILING,
    out_of_memory,
    savings,
)
from dreamforge.jobs.outcome import Failure
from dreamforge.jobs.presets import Preset, batch_size

SDXL_WEIGHTS = 6_938_000_000
"""Bytes of SDXL's weights in float16."""
TILE_SIDE = 512
"""Pixels a side of the tiles that the runner has the VAE decode."""
_UNET, _TEXT_ENCODERS, _VAE = 0.740, 0.236, 0.0241
_LARGEST_LAYER = 0.0085
_VAE_BYTES = {"float32": 1024 * 4, "float16": 1280 * 2, "bfloat16": 1280 * 2}
_UNET_BYTES = 2 * 158
_BENEFIT_OF_DOUBT = 0.8


@dataclass(frozen=True)
class Canvas:
    """What is to be drawn: ``count`` images, with a model whose files hold ``weights_bytes``."""

    width: int
    height: int
    count: int
    is_guided: bool
    weights_bytes: int


def estimated_peak(
    *,
    width: int,
    height: int,
    batch_size: int,
    is_guided: bool,
    weights_bytes: int,
    savings: Collection[str],
    vae_dtype: str,
) -> int:
    """Bytes on the GPU at the worst moment. ``weights_bytes`` is what the files hold, in whatever element type.

    ``savings`` are those of the memory ladder. A smaller architecture, like the built-in model, is narrower:
    activations go with its channels, weights with their square.
    """
    weights = min(weights_bytes, SDXL_WEIGHTS)
    narrowness = (weights / SDXL_WEIGHTS) ** 0.5
    unet = width * height * batch_size * (2 if is_guided else 1) * _UNET_BYTES * narrowness
    side = TILE_SIDE if VAE_TILING in savings else max(width, height)
    decoded = min(width, side) * min(height, side) * (1 if VAE_SLICING in savings else batch_size)
    vae = decoded * _VAE_BYTES[vae_dtype] * narrowness
    vae_weights = weights * _VAE * (2 if vae_dtype == "float32" else 1)
    if SEQUENTIAL_OFFLOAD in savings:
        return int(weights * _LARGEST_LAYER + max(unet, vae))
    if MODEL_OFFLOAD in savings:
        return int(max(weights * _TEXT_ENCODERS, weights * _UNET + unet, vae_weights + vae))
    return int(weights * (_UNET + _TEXT_ENCODERS) + vae_weights + max(unet, vae))


def first_rung_that_fits(
    canvas: Canvas, *, preset: Preset, rung: int, may_degrade: bool, free_bytes: int, total_bytes: int
) -> int | Failure:
    """The rung of the memory ladder to begin with, ``rung`` or a later one; or the failure `oom`.

    ``rung`` is the preset's, or where an earlier attempt got to. Only a step that ``may_degrade`` goes further.
    """
    last = LAST_RUNG if may_degrade else rung
    for candidate in range(rung, last + 1):
        if _fits(_peak(canvas, preset, candidate), free_bytes):
            return candidate
    details = {
        "requested_bytes": _peak(canvas, preset, last),
        "free_bytes": free_bytes,
        "total_bytes": total_bytes,
        "estimated": True,
    }
    suggestions = [*_smaller(canvas, preset, last, free_bytes), *_thriftier(canvas, preset, free_bytes)]
    failure = Failure(OutOfMemory.code, str(OutOfMemory.__doc__), details, suggestions)
    return out_of_memory(failure, rung=last, may_degrade=may_degrade)


def _peak(canvas: Canvas, preset: Preset, rung: int) -> int:
    return estimated_peak(
        width=canvas.width,
        height=canvas.height,
        batch_size=min(canvas.count, batch_size(preset, rung=rung)),
        is_guided=canvas.is_guided,
        weights_bytes=canvas.weights_bytes,
        savings=savings(rung),
        vae_dtype=preset.vae_dtype,
    )


def _fits(peak: int, free_bytes: int) -> bool:
    return peak * _BENEFIT_OF_DOUBT <= free_bytes


def _smaller(canvas: Canvas, preset: Preset, rung: int, free_bytes: int) -> list[str]:
    """The next smaller size that fits, if there is one."""
    size = smaller_size(canvas.width, canvas.height)
    while size is not None:
        if _fits(_peak(replace(canvas, width=size[0], height=size[1]), preset, rung), free_bytes):
            return [try_size(*size)]
        size = smaller_size(*size)
    return []


def _thriftier(canvas: Canvas, preset: Preset, free_bytes: int) -> list[str]:
    """The first preset that fits, if there is one."""
    for other in thriftier_presets(preset):
        if _fits(_peak(canvas, other, other.rung), free_bytes):
            return [try_preset(other)]
    return [MORE_MEMORY]
