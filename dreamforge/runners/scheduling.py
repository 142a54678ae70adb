"""A scheduler for one batch, by its usual name and with the model's own settings."""

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch

from dreamforge.jobs.schedulers import SCHEDULERS

_LCM_STEPS = 50
"""Of the schedule that LCMs are distilled on; it must hold every step asked for."""
_DEFAULTED = "_use_default_values"
"""Where diffusers keeps the names of what a configuration did not say."""
_OF_THE_MODEL = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "set_alpha_to_one",
    "sigma_min",
    "sigma_max",
    "timestep_type",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
)
"""What a model was trained with. The rest of its configuration is of the sampler that it was saved with: Karras'
sigmas, the solver's kind and order, thresholds.
"""
_KNOWN = {"prediction_type": {"epsilon", "v_prediction"}, "timestep_spacing": {"leading", "linspace", "trailing"}}
"""What every scheduler of the table can go by; most find out only when they draw."""


def scheduler_for(name: str, config: Any, *, steps: int) -> Any:
    """A new scheduler of the table, ready for so many steps: it keeps state, so each batch has one of its own.

    ``config`` is that of the model's own scheduler. What it says of the noise and of what the model predicts is kept,
    v-prediction included, and nothing else: a row is the same sampler for every model. Noise that ends with no signal
    left (``rescale_betas_zero_snr``) is known to diffusers' Euler, Euler a, DDIM, DPM++ multistep, UniPC and LCM; the
    others go by the betas as they are. Raises ``KeyError``.
    """
    row = SCHEDULERS[name]
    kind = getattr(diffusers, row.diffusers_class)
    arguments = dict(row.arguments)
    if row.diffusers_class == "LCMScheduler":
        arguments["original_inference_steps"] = max(_LCM_STEPS, steps)
    if "clip_sample" in inspect.signature(kind.__init__).parameters:
        # DDIM's own default is for pixels; latents are larger than 1.
        arguments["clip_sample"] = False
    scheduler: Any = kind.from_config(_of_the_model(config), **arguments)
    if hasattr(scheduler, "set_begin_index"):
        _begin_at_the_first(scheduler)
    return scheduler


def own_scheduler(config: Mapping[str, Any]) -> Any:
    """A pipeline's scheduler until a batch brings its own: what the configuration says of the model."""
    return diffusers.EulerDiscreteScheduler.from_config(_of_the_model(config))


def check_config(config: Any) -> None:
    """Raise what diffusers raises, mostly ``ValueError``, for a configuration that nothing can be drawn by.

    It would fail at the first step otherwise.
    """
    for name, known in _KNOWN.items():
        value = config.get(name)
        if value is not None and value not in known:
            raise ValueError(f"the scheduler has {name} {str(value)[:100]}, not {' or '.join(sorted(known))}")
    for name in SCHEDULERS:
        scheduler = scheduler_for(name, config, steps=2)
        scheduler.set_timesteps(2)
        if not torch.isfinite(getattr(scheduler, "sigmas", scheduler.betas)).all():
            raise ValueError("the scheduler's noise is no number")


def _of_the_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without what its class made up where the configuration says nothing: each class has defaults of its own."""
    made_up = config.get(_DEFAULTED, ())
    return {name: config[name] for name in _OF_THE_MODEL if name in config and name not in made_up}


def _begin_at_the_first(scheduler: Any) -> None:
    """Have it count its steps from the first instead of looking for their times.

    Karras' sigmas of a model without signal at the end round to the same time more than once. diffusers then takes the
    second of them for the first step, and runs over the end.
    """
    set_timesteps = scheduler.set_timesteps

    def set_timesteps_and_begin(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        scheduler.set_begin_index(0)

    scheduler.set_timesteps = set_timesteps_and_begin
