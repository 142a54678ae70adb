"""The estimate of a step's GPU memory, against published peaks, and what is decided by it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamforge.jobs.headroom import SDXL_WEIGHTS, Canvas, estimated_peak, first_rung_that_fits
from dreamforge.jobs.memory_ladder import LAST_RUNG, savings
from dreamforge.jobs.outcome import Failure
from dreamforge.jobs.presets import PRESETS

GB, GIB = 10**9, 2**30
TINY = 13_000_000
SMALLEST_CARD = 2 * GIB
RUNGS = range(LAST_RUNG + 1)
SIDES = st.integers(8, 256).map(lambda eighths: eighths * 8)
BALANCED, FAST, LOW_VRAM = PRESETS["balanced"], PRESETS["fast"], PRESETS["low_vram"]


def _peak(**given_: Any) -> int:
    usual: dict[str, Any] = {
        "width": 1024,
        "height": 1024,
        "batch_size": 1,
        "is_guided": True,
        "weights_bytes": SDXL_WEIGHTS,
        "savings": (),
        "vae_dtype": "float32",
    }
    return estimated_peak(**{**usual, **given_})


def _begin(canvas: Canvas, free_bytes: int, **given_: Any) -> int | Failure:
    usual: dict[str, Any] = {"preset": BALANCED, "rung": 0, "may_degrade": False, "total_bytes": 24 * GIB}
    return first_rung_that_fits(canvas, free_bytes=free_bytes, **{**usual, **given_})


def _canvas(side: int = 1024, *, count: int = 1, weights_bytes: int = SDXL_WEIGHTS) -> Canvas:
    return Canvas(side, side, count, is_guided=True, weights_bytes=weights_bytes)


@pytest.mark.parametrize(
    ("given_", "published"),
    [
        pytest.param({"vae_dtype": "bfloat16"}, 8.96 * GIB, id="diffusion-fast, bfloat16, SDPA"),
        pytest.param({"batch_size": 4}, 21.72 * GIB, id="blog, float16, four images"),
        pytest.param({"batch_size": 4, "savings": ("model_offload",)}, 20.21 * GIB, id="blog, model offload"),
        pytest.param({"batch_size": 4, "savings": ("sequential_offload",)}, 19.91 * GIB, id="blog, sequential offload"),
        # What the blog's four images leave for one: 7.1 GB of weights and a quarter of the rest.
        pytest.param({}, 7.1 * GB + (21.72 * GIB - 7.1 * GB) / 4, id="blog, float16, one of the images"),
    ],
)
def test_it_is_near_the_peaks_that_others_have_published(given_: dict[str, Any], published: float) -> None:
    assert _peak(**given_) == pytest.approx(published, rel=0.25)


def test_models_that_take_turns_need_as_much_as_the_one_that_needs_most() -> None:
    alone = _peak(savings=savings(3))
    assert alone == pytest.approx(5.14 * GB + 0.66 * GB, rel=0.02)
    assert alone < 8 * GIB * 0.8


def test_layers_that_take_turns_need_their_activations_and_little_more() -> None:
    assert _peak(savings=savings(4), width=512, height=512) == pytest.approx(1.07 * GB + 0.06 * GB, rel=0.02)


def test_tiles_bound_what_decoding_takes() -> None:
    decoding = 1024 * 4
    assert _peak() - _peak(savings=savings(1)) > 0.7 * decoding * 1024 * 1024
    small = {"width": 512, "height": 512}
    assert _peak(savings=savings(1), **small) == _peak(**small)


@given(SIDES, SIDES, st.integers(1, 8), st.sampled_from(RUNGS), st.booleans(), st.sampled_from(["float32", "bfloat16"]))
def test_more_never_takes_less(
    width: int, height: int, batch_size: int, rung: int, is_guided: bool, vae_dtype: str
) -> None:
    call: dict[str, Any] = {
        "width": width,
        "height": height,
        "batch_size": batch_size,
        "is_guided": is_guided,
        "savings": savings(rung),
        "vae_dtype": vae_dtype,
    }
    peak = _peak(**call)
    more = ({"width": width + 8}, {"height": height + 8}, {"batch_size": batch_size + 1}, {"is_guided": True})
    assert all(peak <= _peak(**{**call, **change}) for change in more)
    assert _peak(**call, weights_bytes=TINY) <= _peak(**call, weights_bytes=SDXL_WEIGHTS // 2) <= peak
    assert peak >= _peak(**{**call, "savings": savings(min(rung + 1, LAST_RUNG))})
    assert peak >= _peak(**{**call, "vae_dtype": "bfloat16"})


def test_files_in_float32_are_loaded_as_float16() -> None:
    assert _peak(weights_bytes=2 * SDXL_WEIGHTS) == _peak()


@pytest.mark.parametrize("side", range(64, 513, 64))
@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())
def test_the_built_in_model_fits_every_card(preset: Any, side: int) -> None:
    canvas = _canvas(side, count=100, weights_bytes=TINY)
    assert _begin(canvas, SMALLEST_CARD // 8, preset=preset, rung=preset.rung) == preset.rung


@pytest.mark.parametrize(
    ("free", "preset", "may_degrade", "rung"),
    [
        (24 * GIB, BALANCED, False, 0),
        (10 * GIB, BALANCED, False, 0),
        (7 * GIB, BALANCED, True, 1),
        (5 * GIB, BALANCED, True, 3),
        (4 * GIB, BALANCED, True, 4),
        (6 * GIB, LOW_VRAM, False, 3),
        (24 * GIB, FAST, False, 0),
        (9 * GIB, FAST, True, 1),
    ],
)
def test_a_step_begins_on_the_first_rung_that_fits(free: int, preset: Any, may_degrade: bool, rung: int) -> None:
    assert _begin(_canvas(count=4), free, preset=preset, rung=preset.rung, may_degrade=may_degrade) == rung


def test_what_is_past_the_rung_of_an_earlier_attempt_is_not_tried_again() -> None:
    assert _begin(_canvas(), 24 * GIB, rung=2, may_degrade=True) == 2


def test_a_batch_is_as_large_as_what_is_left_to_draw() -> None:
    assert _begin(_canvas(count=1), 8 * GIB, preset=FAST) == 0
    assert isinstance(_begin(_canvas(count=4), 8 * GIB, preset=FAST), Failure)


def test_a_refusal_says_what_was_wanted_and_what_to_try() -> None:
    failure = _begin(_canvas(), 7 * GIB, total_bytes=8 * GIB)
    assert isinstance(failure, Failure)
    assert failure.code == "oom"
    assert failure.details == {
        "requested_bytes": _peak(),
        "free_bytes": 7 * GIB,
        "total_bytes": 8 * GIB,
        "estimated": True,
        "rung": 0,
        "savings": [],
    }
    assert failure.suggestions == [
        "Try a smaller size, 576x576.",
        'Set params.preset to "low_vram": slower, with less memory.',
        'Set options.oom_policy to "degrade": slower, with less memory.',
    ]


def test_one_image_at_a_time_is_suggested_before_what_is_slower() -> None:
    failure = _begin(_canvas(count=4), 12 * GIB, preset=FAST)
    assert isinstance(failure, Failure)
    assert 'Set params.preset to "balanced": one image at a time.' in failure.suggestions


def test_nothing_is_suggested_that_would_not_fit_either() -> None:
    failure = _begin(_canvas(), GIB // 2, may_degrade=True)
    assert isinstance(failure, Failure)
    assert failure.details["rung"] == LAST_RUNG
    assert failure.suggestions == ["Try a smaller model, or a GPU with more memory."]
