"""The table of schedulers: each row works for any number of steps, and readers of A1111's texts know it."""

import inspect
import json
from typing import Any

import pytest

from dreamforge.jobs.schedulers import SCHEDULERS, UNIFORM

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from dreamforge.runners.scheduling import check_config, scheduler_for  # noqa: E402 - torch, only where it is installed
from dreamforge.runners.vocabulary import SDXL_BASE  # noqa: E402 - likewise

STEPS = [1, 2, 3, 4, 5, 20, 21, 60]
# `modules/sd_samplers_kdiffusion.py`, `sd_samplers_timesteps.py`, `sd_samplers_lcm.py` and `sd_schedulers.py`.
A1111_SAMPLERS = {
    "DPM++ 2M",
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "DPM++ 3M SDE",
    "Euler a",
    "Euler",
    "Heun",
    "DPM2",
    "DPM2 a",
    "DDIM",
    "UniPC",
    "LCM",
}
A1111_SCHEDULES = {None, "Karras", UNIFORM}
KNOWS_ZERO_SNR = {"euler", "euler_karras", "euler_a", "ddim", "unipc", "lcm"} | {
    name for name in SCHEDULERS if name.startswith(("dpmpp_2m", "dpmpp_3m"))
}
EPSILON: dict[str, Any] = json.loads((SDXL_BASE / "scheduler" / "scheduler_config.json").read_text())
VELOCITY = {
    **EPSILON,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
CONFIGS = {"epsilon": EPSILON, "velocity": VELOCITY}

# What the sampler that a model was saved with says of itself.
SAMPLERS: dict[str, dict[str, Any]] = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "two-at-once": {"use_karras_sigmas": True, "use_exponential_sigmas": True},
    "lu": {"use_lu_lambdas": True},
    "flow": {"use_flow_sigmas": True, "flow_shift": 3.0, "use_dynamic_shifting": True, "shift_terminal": 0.1},
    "solver": {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun", "predict_x0": False},
    "ends": {"final_sigmas_type": "sigma_min", "euler_at_final": True, "lower_order_final": False},
    "held": {"clip_sample": True, "thresholding": True, "lambda_min_clipped": -5.1, "variance_type": "learned_range"},
    "distilled": {"original_inference_steps": 4, "timestep_scaling": 1.0},
    "interpolated": {"interpolation_type": "log_linear"},
}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _config(of: str) -> Any:
    return diffusers.EulerDiscreteScheduler.from_config(CONFIGS[of]).config


def _denoised(name: str, config: Any, *, steps: int, seeds: tuple[int, ...] = (1,)) -> Any:
    scheduler = scheduler_for(name, config, steps=steps)
    scheduler.set_timesteps(steps)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    takes_noise = "generator" in inspect.signature(scheduler.step).parameters
    noise = {"generator": generators} if takes_noise else {}
    latents = torch.cat([torch.randn(1, 4, 4, 4, generator=generator) for generator in generators])
    latents = latents * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        model_output = 0.3 * scheduler.scale_model_input(latents, time)
        latents = scheduler.step(model_output, time, latents, **noise).prev_sample
    return latents


def test_there_are_sixteen() -> None:
    assert len(SCHEDULERS) == 16


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("config", CONFIGS)
def test_each_gets_to_its_end_in_any_number_of_steps(name: str, config: str) -> None:
    for steps in STEPS:
        assert torch.isfinite(_denoised(name, _config(config), steps=steps)).all(), steps


@pytest.mark.parametrize("name", SCHEDULERS)
def test_noise_comes_from_the_seeds_alone_each_image_from_its_own(name: str) -> None:
    config = _config("epsilon")
    both = _denoised(name, config, steps=5, seeds=(1, 2))
    torch.manual_seed(3)
    assert torch.equal(both, _denoised(name, config, steps=5, seeds=(1, 2)))
    for position, seed in enumerate((1, 2)):
        assert torch.allclose(both[position], _denoised(name, config, steps=5, seeds=(seed,))[0], atol=1e-6)


def test_no_two_of_them_are_the_same() -> None:
    ends = [_denoised(name, _config("epsilon"), steps=20) for name in SCHEDULERS]
    assert len({end.numpy().tobytes() for end in ends}) == len(SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_the_model_predicts_and_its_noise_are_kept(name: str) -> None:
    scheduler = scheduler_for(name, _config("velocity"), steps=4)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.beta_schedule == "scaled_linear"
    knows = "rescale_betas_zero_snr" in inspect.signature(type(scheduler).__init__).parameters
    assert knows == (name in KNOWS_ZERO_SNR)
    assert not knows or scheduler.config.rescale_betas_zero_snr


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_row_is_the_same_sampler_whatever_the_model_was_saved_with(name: str) -> None:
    plain = _denoised(name, EPSILON, steps=6)
    times = _times(name, EPSILON)
    for sampler, config in SAMPLERS.items():
        saved = {**EPSILON, **config}
        assert _times(name, saved) == times, sampler
        assert torch.equal(_denoised(name, saved, steps=6), plain), sampler


def _times(name: str, config: dict[str, Any]) -> tuple[list[float], list[float]]:
    scheduler = scheduler_for(name, config, steps=6)
    scheduler.set_timesteps(6)
    return scheduler.timesteps.tolist(), getattr(scheduler, "sigmas", torch.zeros(0)).tolist()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_a_model_does_not_say_of_pixels_is_not_done_to_latents(name: str) -> None:
    config = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear").config
    scheduler = scheduler_for(name, config, steps=4)
    assert not scheduler.config.get("clip_sample")
    assert not scheduler.config.get("thresholding")


@pytest.mark.parametrize(
    "spoilt",
    [
        {"timestep_spacing": "even"},
        {"timestep_spacing": ["leading"]},
        {"prediction_type": "flow_prediction"},
        {"prediction_type": "sample"},
        {"beta_schedule": "cubic"},
        {"beta_start": "small"},
        {"beta_end": float("nan")},
        {"steps_offset": "a"},
    ],
    ids=str,
)
def test_a_configuration_that_nothing_can_be_drawn_by_is_told_before(spoilt: dict[str, Any]) -> None:
    check_config(EPSILON)
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        check_config({**EPSILON, **spoilt})


def test_one_that_is_not_in_the_table_is_none() -> None:
    with pytest.raises(KeyError):
        scheduler_for("plms", _config("epsilon"), steps=4)


@pytest.mark.parametrize("row", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_a1111_knows_each_by_its_name(row: Any) -> None:
    assert row.a1111_sampler in A1111_SAMPLERS
    assert row.a1111_schedule in A1111_SCHEDULES
