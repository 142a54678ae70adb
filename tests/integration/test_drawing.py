"""What is drawn: the same pixels for the same call, in every process, by every scheduler, in every batch."""

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamforge.jobs.frames import BeginItems, ItemDrawn, Message, PrepareStep, Progress
from dreamforge.jobs.memory_ladder import VAE_TILING
from dreamforge.jobs.progress import Stage
from dreamforge.jobs.schedulers import SCHEDULERS

pytestmark = [
    pytest.mark.timeout(300),
    # numpy's advice to diffusers; the runner's own process shows none.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

PARAMS: dict[str, Any] = {
    "prompt": "a fox",
    "negative_prompt": "",
    "width": 32,
    "height": 32,
    "steps": 3,
    "guidance_scale": 6.5,
    "scheduler": "euler",
}
PROCESSES, INTERPRETERS = 20, 2


def _call(model: Path, *, savings: list[str] | None = None, **params: Any) -> PrepareStep:
    return PrepareStep(
        step="generate",
        model_kind="sdxl",
        model_path=str(model),
        device="cpu",
        params=PARAMS | params,
        savings=savings or [],
    )


def _prepared(call: PrepareStep, told: list[Message] | None = None) -> Any:
    from dreamforge.runners.sdxl import SdxlRunner  # noqa: PLC0415 - torch, only where it is needed

    runner = SdxlRunner(emit=[].append if told is None else told.append)
    runner.prepare(call)
    return runner


def _drawn(runner: Any, *seeds: int) -> list[ItemDrawn]:
    return list(runner.run_step(BeginItems(item_indexes=list(range(len(seeds))), seeds=list(seeds))))


def _difference(one: ItemDrawn, other: ItemDrawn) -> int:
    first, second = (np.frombuffer(image.pixels, np.uint8).astype(np.int16) for image in (one, other))
    return int(abs(first - second).max())


# One interpreter has a few children: what takes the time is torch's import, and a process of its own is each of them.
_EVERY_SCHEDULER = """
import hashlib, json, os, sys
from dreamforge.runners import conversation
conversation._quieten()
from dreamforge.jobs.frames import BeginItems, PrepareStep
from dreamforge.runners.sdxl import SdxlRunner
call, orders = json.loads(sys.argv[1])
def draw(schedulers):
    runner = SdxlRunner(emit=lambda _: None)
    runner.prepare(PrepareStep(**call))
    hashes = {}
    for scheduler in schedulers:
        runner._call.params["scheduler"] = scheduler
        (image,) = runner.run_step(BeginItems(item_indexes=[0], seeds=[5]))
        hashes[scheduler] = hashlib.sha256(image.pixels).hexdigest()
    os.write(1, json.dumps(hashes).encode() + b"\\n")
for order in orders:
    if (child := os.fork()) == 0:
        draw(order)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def _in_new_processes(call: PrepareStep, orders: list[list[str]]) -> list[dict[str, str]]:
    command = [sys.executable, "-c", _EVERY_SCHEDULER, json.dumps([call.__dict__, orders])]
    result = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_every_scheduler_draws_the_same_pixels_in_twenty_processes(tiny_model: Path) -> None:
    call, schedulers = _call(tiny_model), list(SCHEDULERS)
    # In another order each, so that what came before would be seen.
    orders = [schedulers[start:] + schedulers[:start] for start in range(PROCESSES)]
    with ThreadPoolExecutor(max_workers=INTERPRETERS) as pool:
        parts = pool.map(lambda start: _in_new_processes(call, orders[start::INTERPRETERS]), range(INTERPRETERS))
        first, *others = [hashes for part in parts for hashes in part]
    assert len(others) == PROCESSES - 1
    assert first.keys() == SCHEDULERS.keys()
    assert [hashes for hashes in others if hashes != first] == []


def test_an_image_does_not_depend_on_what_was_drawn_before(tiny_model: Path) -> None:
    for scheduler in ("euler_a", "dpmpp_3m_sde_karras", "unipc"):
        runner = _prepared(_call(tiny_model, scheduler=scheduler))
        (first,), (other,), (again,) = (_drawn(runner, seed) for seed in (5, 9, 5))
        assert first.pixels == again.pixels != other.pixels


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2])
def test_every_scheduler_draws_in_few_steps(tiny_model: Path, scheduler: str, steps: int) -> None:
    (image,) = _drawn(_prepared(_call(tiny_model, scheduler=scheduler, steps=steps)), 5)
    assert len(set(image.pixels)) > 50


@pytest.mark.parametrize("scheduler", ["euler", "euler_a", "dpmpp_2m_sde", "lcm"])
def test_a_batch_draws_what_its_items_draw_alone(tiny_model: Path, scheduler: str) -> None:
    runner = _prepared(_call(tiny_model, scheduler=scheduler))
    seeds = (5, 6, 7)
    batch = _drawn(runner, *seeds)
    assert [(image.item_index, image.seed) for image in batch] == [(0, 5), (1, 6), (2, 7)]
    for image, seed in zip(batch, seeds, strict=True):
        (alone,) = _drawn(runner, seed)
        # The noise is the same; sums over several images are made in another order.
        assert _difference(image, alone) <= 2
    assert _difference(batch[0], batch[1]) > 50
    assert [image.pixels for image in _drawn(runner, *seeds)] == [image.pixels for image in batch]


def test_a_batch_tells_of_each_item_and_shares_its_time(tiny_model: Path) -> None:
    told: list[Message] = []
    runner = _prepared(_call(tiny_model, steps=2), told)
    images = list(runner.run_step(BeginItems(item_indexes=[4, 9], seeds=[1, 2])))
    progress = [(frame.item_index, frame.stage, frame.stage_progress) for frame in told if isinstance(frame, Progress)]
    for index in (4, 9):
        assert [share for of, stage, share in progress if (of, stage) == (index, Stage.DENOISE)] == [0.5, 1.0]
        assert [share for of, stage, share in progress if (of, stage) == (index, Stage.DECODE)] == [0.0, 1.0]
    assert [(image.item_index, image.seed) for image in images] == [(4, 1), (9, 2)]
    assert images[0].timings["denoise"] == images[1].timings["denoise"]
    assert set(images[0].timings) == {"encode_prompt", "denoise", "decode"}


def test_images_of_a_batch_are_given_as_they_are_decoded(tiny_model: Path) -> None:
    told: list[Message] = []
    runner = _prepared(_call(tiny_model), told)
    images = runner.run_step(BeginItems(item_indexes=[0, 1], seeds=[1, 2]))
    assert next(images).item_index == 0
    decoded = [frame for frame in told if isinstance(frame, Progress) and frame.stage == Stage.DECODE]
    assert {frame.item_index for frame in decoded} == {0}


def test_tiles_are_decoded_where_tiling_is_on(tiny_model: Path) -> None:
    sizes: list[tuple[int, ...]] = []
    runner = _prepared(_call(tiny_model, savings=[VAE_TILING], width=128, height=64, steps=1))
    runner._pipeline.vae.decoder.register_forward_hook(lambda _, inputs, __: sizes.append(tuple(inputs[0].shape[-2:])))
    (tiled,) = _drawn(runner, 5)
    assert len(sizes) > 1
    assert max(max(size) for size in sizes) <= 8
    (whole,) = _drawn(_prepared(_call(tiny_model, width=128, height=64, steps=1)), 5)
    assert hashlib.sha256(tiled.pixels).digest() != hashlib.sha256(whole.pixels).digest()


def test_sdxls_own_vae_is_decoded_in_tiles_at_its_usual_size() -> None:
    import torch  # noqa: PLC0415 - only where it is needed
    from diffusers import AutoencoderKL  # noqa: PLC0415 - likewise

    from dreamforge.runners.placement import tile  # noqa: PLC0415 - the whole pipeline would be gigabytes
    from dreamforge.runners.vocabulary import SDXL_BASE  # noqa: PLC0415 - likewise

    with torch.device("meta"):
        config: Any = AutoencoderKL.load_config(str(SDXL_BASE), subfolder="vae")
        vae: Any = AutoencoderKL.from_config(config)
    tile(vae)
    sizes: list[tuple[int, ...]] = []
    vae.decoder.register_forward_hook(lambda _, inputs, __: sizes.append(tuple(inputs[0].shape[-2:])))
    image = vae.decode(torch.zeros(1, 4, 128, 128, device="meta"), return_dict=False)[0]
    assert tuple(image.shape) == (1, 3, 1024, 1024)
    assert len(sizes) > 1
    assert max(max(size) for size in sizes) == 64
