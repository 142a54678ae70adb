"""From a step's call to a pipeline on its device: checkpoint, VAE, LoRAs. Nothing here asks a network."""

from pathlib import Path
from typing import Any

from diffusers import StableDiffusionXLPipeline

from dreamforge.jobs.frames import PrepareStep
from dreamforge.runners.component_files import of_file, of_folder, vae_of
from dreamforge.runners.loras import add_loras
from dreamforge.runners.placement import place
from dreamforge.runners.precision import vae_dtype
from dreamforge.runners.vocabulary import SDXL_BASE


def load(call: PrepareStep) -> Any:
    """The `StableDiffusionXLPipeline` of a call.

    Raises ``ModelCorrupt`` for files that are not what they should be: every weight comes from a file or there is no
    pipeline. Raises ``ModelIncompatible`` for a LoRA of another architecture.
    """
    path = Path(call.model_path)
    config = Path(call.config_path) if call.config_path else None
    vae = None
    if call.vae_path:
        shape = config or (path if path.is_dir() else SDXL_BASE)
        vae = vae_of(Path(call.vae_path), shape, dtype=vae_dtype(call.device, call.vae_dtype))
    components = of_file(path, config or SDXL_BASE, call, vae=vae) if path.is_file() else of_folder(path, call, vae=vae)
    make: Any = StableDiffusionXLPipeline  # its annotations ask for more than it needs
    pipeline = make(**components, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    add_loras(pipeline, call.loras)
    return place(pipeline, call)
