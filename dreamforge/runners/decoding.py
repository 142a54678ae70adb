"""From latents to pixels."""

from typing import Any

import numpy as np
import torch

from dreamforge.errors import GpuError

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def decode(pipeline: Any, latents: torch.Tensor) -> Pixels:
    """The pixels of one image's latents, height x width x 3, as `StableDiffusionXLPipeline.__call__` does it.

    Raises ``GpuError`` when there are values among them that are no numbers.
    """
    vae = pipeline.vae
    latents = latents.to(vae.dtype)
    mean, deviation = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and deviation is not None:
        shape = (1, -1, 1, 1)
        latents = latents * torch.tensor(deviation).view(shape).to(latents) / vae.config.scaling_factor
        latents = latents + torch.tensor(mean).view(shape).to(latents)
    else:
        latents = latents / vae.config.scaling_factor
    image = vae.decode(latents, return_dict=False)[0]
    (values,) = pipeline.image_processor.postprocess(image, output_type="np")
    if not np.isfinite(values).all():
        raise GpuError("The decoded image holds values that are no numbers.")
    return (values * 255).round().astype(np.uint8)
