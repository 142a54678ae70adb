"""SDXL by diffusers' `StableDiffusionXLPipeline`."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dreamforge.jobs.frames import BeginItems, ItemDrawn, PrepareStep, Progress
from dreamforge.jobs.progress import Stage
from dreamforge.runners.component_files import unreadable
from dreamforge.runners.decoding import decode
from dreamforge.runners.failures import peak_memory
from dreamforge.runners.loading import load
from dreamforge.runners.prompts import encode
from dreamforge.runners.protocol import Runner
from dreamforge.runners.scheduling import check_config, scheduler_for

_UNGUIDED = 1.0
"""Up to this guidance scale an image is not led away from the negative prompt."""


class SdxlRunner(Runner):
    """Draws with an SDXL model: a folder in diffusers' layout, or a single file."""

    _pipeline: Any = None
    _scheduler_config: Any = None
    _call: PrepareStep
    _embeddings: dict[str, torch.Tensor]

    def prepare(self, call: PrepareStep) -> str:
        """Load the pipeline onto the device; the UNet's element type."""
        self._call = call
        self._embeddings = {}
        # Where cuDNN has a choice, the kernel that gives the same bits each time.
        torch.backends.cudnn.deterministic = True
        self._pipeline = load(call)
        self._scheduler_config = self._pipeline.scheduler.config
        with unreadable(Path(call.model_path)):
            check_config(self._scheduler_config)
        return str(self._pipeline.unet.dtype).removeprefix("torch.")

    @torch.inference_mode()
    def run_step(self, items: BeginItems) -> Iterator[ItemDrawn]:
        """Draw a batch: encode the prompt, denoise all at once, decode one by one."""
        count = len(items.item_indexes)
        began = time.monotonic()
        self._progress(items.item_indexes, Stage.ENCODE_PROMPT, 0.0)
        embeddings = self._encode_prompt()
        encoded = time.monotonic()
        latents = self._denoise(items, embeddings)
        if self._call.device == "cuda":
            # It works behind: the last step's time would be counted as the decoder's.
            torch.cuda.synchronize()
        denoised = time.monotonic()
        shares = {Stage.ENCODE_PROMPT: (encoded - began) / count, Stage.DENOISE: (denoised - encoded) / count}
        for position, (index, seed) in enumerate(zip(items.item_indexes, items.seeds, strict=True)):
            yield self._decode(index, seed, latents[position : position + 1], shares)

    def cleanup(self) -> int | None:
        """Drop the pipeline; the peak of allocated device memory."""
        self._pipeline = None
        self._embeddings = {}
        return peak_memory()

    def _progress(self, indexes: list[int], stage: Stage, share: float) -> None:
        for index in indexes:
            self.emit_event(Progress(item_index=index, stage=stage, stage_progress=share))

    def _encode_prompt(self) -> dict[str, torch.Tensor]:
        # Every item of a job has the same prompt.
        if not self._embeddings:
            params = self._call.params
            self._embeddings = encode(
                self._pipeline,
                prompt=params["prompt"],
                negative_prompt=params["negative_prompt"],
                is_guided=params["guidance_scale"] > _UNGUIDED,
                # Not where the models are: those that are offloaded are elsewhere until they are needed.
                device=self._call.device,
            )
        return self._embeddings

    def _denoise(self, items: BeginItems, embeddings: dict[str, torch.Tensor]) -> torch.Tensor:
        params = self._call.params

        def on_step_end(_: Any, step: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
            share = min(1.0, (step + 1) / self._pipeline.num_timesteps)
            self._progress(items.item_indexes, Stage.DENOISE, share)
            return values

        self._pipeline.scheduler = scheduler_for(params["scheduler"], self._scheduler_config, steps=params["steps"])
        return self._pipeline(
            **embeddings,
            width=params["width"],
            height=params["height"],
            num_inference_steps=params["steps"],
            guidance_scale=float(params["guidance_scale"]),
            num_images_per_prompt=len(items.seeds),
            # Noise is drawn on the CPU, so a seed means the same on every device; and for each image from a generator
            # of its own, so it means the same in every batch.
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in items.seeds],
            output_type="latent",
            callback_on_step_end=on_step_end,
        ).images

    def _decode(self, index: int, seed: int, latents: torch.Tensor, shares: dict[Stage, float]) -> ItemDrawn:
        began = time.monotonic()
        self._progress([index], Stage.DECODE, 0.0)
        pixels = decode(self._pipeline, latents)
        self._progress([index], Stage.DECODE, 1.0)
        height, width, _ = pixels.shape
        seconds = {**shares, Stage.DECODE: time.monotonic() - began}
        return ItemDrawn(
            item_index=index,
            seed=seed,
            width=width,
            height=height,
            timings={str(stage): round(value, 4) for stage, value in seconds.items()},
            pixels=pixels.tobytes(),
        )
