"""SDXL by diffusers' `StableDiffusionXLPipeline`."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import SafetensorError

from dreamforge.errors import GpuError, ModelCorrupt
from dreamforge.jobs.frames import BeginItem, ItemDrawn, PrepareStep, Progress
from dreamforge.jobs.memory_ladder import MODEL_OFFLOAD, SEQUENTIAL_OFFLOAD, VAE_SLICING, VAE_TILING
from dreamforge.jobs.progress import Stage
from dreamforge.jobs.schedulers import SCHEDULERS
from dreamforge.runners.failures import peak_memory
from dreamforge.runners.protocol import Runner

# What diffusers, transformers and safetensors raise for missing, cut, mismatched or foreign files.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError)
_REASON_LENGTH = 300
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))


class SdxlRunner(Runner):
    """Draws with an SDXL model in diffusers' folder layout."""

    _pipeline: Any = None
    _scheduler_config: Any = None
    _call: PrepareStep
    _embeddings: dict[str, torch.Tensor]

    def prepare(self, call: PrepareStep) -> None:
        """Load the pipeline onto the device."""
        self._call = call
        self._embeddings = {}
        self._pipeline = _load(Path(call.model_path), device=call.device, savings=call.savings)
        self._scheduler_config = self._pipeline.scheduler.config

    @torch.inference_mode()
    def run_step(self, item: BeginItem) -> ItemDrawn:
        """Draw one image: encode the prompt, denoise, decode."""
        began = time.monotonic()
        self._progress(item, Stage.ENCODE_PROMPT, 0.0)
        embeddings = self._encode_prompt()
        encoded = time.monotonic()
        latents = self._denoise(item, embeddings)
        denoised = time.monotonic()
        self._progress(item, Stage.DECODE, 0.0)
        pixels = _decode(self._pipeline, latents)
        self._progress(item, Stage.DECODE, 1.0)
        height, width, _ = pixels.shape
        return ItemDrawn(
            item_index=item.item_index,
            seed=item.seed,
            width=width,
            height=height,
            timings={
                Stage.ENCODE_PROMPT: round(encoded - began, 4),
                Stage.DENOISE: round(denoised - encoded, 4),
                Stage.DECODE: round(time.monotonic() - denoised, 4),
            },
            pixels=pixels.tobytes(),
        )

    def cleanup(self) -> int | None:
        """Drop the pipeline; the peak of allocated device memory."""
        self._pipeline = None
        self._embeddings = {}
        return peak_memory()

    def _progress(self, item: BeginItem, stage: Stage, share: float) -> None:
        self.emit_event(Progress(item_index=item.item_index, stage=stage, stage_progress=share))

    def _encode_prompt(self) -> dict[str, torch.Tensor]:
        # Every item of a job has the same prompt.
        if not self._embeddings:
            params = self._call.params
            guided = params["guidance_scale"] > 1
            positive, negative, pooled, negative_pooled = self._pipeline.encode_prompt(
                prompt=params["prompt"],
                negative_prompt=params["negative_prompt"],
                # Not where the models are: those that are offloaded are elsewhere until they are needed.
                device=torch.device(self._call.device),
                do_classifier_free_guidance=guided,
            )
            self._embeddings = {"prompt_embeds": positive, "pooled_prompt_embeds": pooled}
            if guided:
                self._embeddings |= {
                    "negative_prompt_embeds": negative,
                    "negative_pooled_prompt_embeds": negative_pooled,
                }
        return self._embeddings

    def _denoise(self, item: BeginItem, embeddings: dict[str, torch.Tensor]) -> torch.Tensor:
        params = self._call.params

        def on_step_end(_: Any, step: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
            self._progress(item, Stage.DENOISE, min(1.0, (step + 1) / self._pipeline.num_timesteps))
            return values

        # A scheduler keeps state between its steps: each item has a fresh one, made from the model's own settings.
        self._pipeline.scheduler = _scheduler(params["scheduler"], self._scheduler_config)
        return self._pipeline(
            **embeddings,
            width=params["width"],
            height=params["height"],
            num_inference_steps=params["steps"],
            guidance_scale=float(params["guidance_scale"]),
            # Noise is drawn on the CPU, so a seed means the same on every device.
            generator=torch.Generator("cpu").manual_seed(item.seed),
            output_type="latent",
            callback_on_step_end=on_step_end,
        ).images


def _load(folder: Path, *, device: str, savings: Sequence[str]) -> Any:
    _check_folder(folder)
    # Half precision for all but the VAE: SDXL's own overflows in float16.
    dtype: Any = torch.float32 if device == "cpu" else {"default": torch.float16, "vae": torch.float32}
    try:
        pipeline: Any = StableDiffusionXLPipeline.from_pretrained(
            str(folder),
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            add_watermarker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
    except _UNREADABLE as error:
        reason = f"{type(error).__name__}: {error}".replace(str(folder), "MODEL")
        raise ModelCorrupt(details={"reason": reason[:_REASON_LENGTH]}) from error
    try:
        return _place(pipeline, device=device, savings=savings)
    except NotImplementedError as error:
        # diffusers leaves a weight that no file holds without data, and torch finds out here.
        raise ModelCorrupt(details={"reason": "weights are missing"}) from error


def _place(pipeline: Any, *, device: str, savings: Sequence[str]) -> Any:
    if VAE_TILING in savings:
        pipeline.vae.enable_tiling()
    if VAE_SLICING in savings:
        pipeline.vae.enable_slicing()
    if device == "cpu":
        # Offloading is to the host's memory, where it all is.
        return pipeline.to(device)
    if SEQUENTIAL_OFFLOAD in savings:
        pipeline.enable_sequential_cpu_offload(device=device)
    elif MODEL_OFFLOAD in savings:
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)
    return pipeline


def _check_folder(folder: Path) -> None:
    """What diffusers would pass over: it takes a path that is not there for the name of a repository, loads another
    kind of pipeline without a word, and makes an empty tokenizer where the files are gone.
    """
    try:
        index: Any = json.loads((folder / "model_index.json").read_text())
        kind = str(index["_class_name"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelCorrupt(details={"reason": "model_index.json is missing or unreadable"}) from error
    if not kind.startswith("StableDiffusionXL"):
        raise ModelCorrupt(details={"reason": f"model_index.json is of a {kind[:100]}"})
    for name in ("tokenizer", "tokenizer_2"):
        if not any(all((folder / name / file).is_file() for file in files) for files in _VOCABULARIES):
            raise ModelCorrupt(details={"reason": f"{name} has no vocabulary"})


def _scheduler(name: str, config: Any) -> Any:
    row = SCHEDULERS[name]
    return getattr(diffusers, row.diffusers_class).from_config(config, **row.arguments)


def _decode(pipeline: Any, latents: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Latents to pixels, height x width x 3, as `StableDiffusionXLPipeline.__call__` does it."""
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
