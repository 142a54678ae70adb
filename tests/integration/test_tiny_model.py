"""The built-in model: small, complete, the same in every build, and able to draw whatever it is asked."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dreamforge.jobs.frames import BeginItems, ItemDrawn, Message, PrepareStep

# numpy's advice to diffusers and torch; the runner's own process shows none.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MOST_BYTES = 13_000_000
PARAMS = {
    "prompt": "a fox",
    "negative_prompt": "",
    "width": 64,
    "height": 64,
    "steps": 2,
    "guidance_scale": 6.5,
    "scheduler": "euler",
}
Draw = Callable[..., ItemDrawn]


@pytest.fixture(scope="module")
def draw(tiny_model: Path) -> Draw:
    """Draws one item with the tiny model in this process."""
    from dreamforge.runners.sdxl import SdxlRunner  # noqa: PLC0415 - torch, only where it is needed

    runner = SdxlRunner(emit=_ignore)

    def drawn(*, seed: int = 1, **params: object) -> ItemDrawn:
        call = PrepareStep(
            step="generate", model_kind="sdxl", model_path=str(tiny_model), device="cpu", params={**PARAMS, **params}
        )
        runner.prepare(call)
        (image,) = runner.run_step(BeginItems(item_indexes=[0], seeds=[seed]))
        return image

    return drawn


def _ignore(_: Message) -> None:
    pass


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dreamforge.runners.tiny", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_build_gives_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    assert _build(tmp_path / "again").returncode == 0
    assert _files(tmp_path / "again") == _files(tiny_model)


def test_it_is_a_small_and_ordinary_diffusers_folder(tiny_model: Path) -> None:
    files = _files(tiny_model)
    assert sum(map(len, files.values())) < MOST_BYTES
    assert json.loads(files["model_index.json"])["_class_name"] == "StableDiffusionXLPipeline"
    weights = {name for name in files if name.endswith((".safetensors", ".bin", ".ckpt", ".pt"))}
    assert weights == {
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }


def test_no_file_names_the_place_where_it_was_built(tiny_model: Path) -> None:
    place = str(tiny_model.parent).encode()
    assert not [name for name, content in _files(tiny_model).items() if place in content]


def test_nothing_is_left_beside_it(tiny_model: Path) -> None:
    assert [path.name for path in tiny_model.parent.iterdir()] == [tiny_model.name]


def test_a_folder_that_is_there_is_not_written_into(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("keep")
    assert _build(taken).returncode != 0
    assert _files(tmp_path) == {"taken/mine": b"keep"}


def test_without_a_folder_it_says_what_it_wants() -> None:
    result = subprocess.run([sys.executable, "-m", "dreamforge.runners.tiny"], capture_output=True, check=False)
    assert result.returncode != 0
    assert b"FOLDER" in result.stderr
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize(("width", "height"), [(64, 64), (72, 88), (128, 64), (512, 64), (64, 504)])
def test_an_image_has_exactly_the_size_asked_for(draw: Draw, width: int, height: int) -> None:
    image = draw(width=width, height=height, steps=1)
    assert (image.width, image.height) == (width, height)
    assert len(image.pixels) == width * height * 3


def test_images_are_noise_and_differ_by_seed(draw: Draw) -> None:
    first, second = draw(seed=1), draw(seed=2)
    for image in (first, second):
        for channel in range(3):
            values = image.pixels[channel::3]
            assert len(set(values)) > 50
            assert max(values) - min(values) > 100
    assert first.pixels != second.pixels


def test_the_prompts_matter_to_the_image(draw: Draw) -> None:
    plain = draw()
    assert draw(prompt="a cat").pixels != plain.pixels
    assert draw(negative_prompt="a cat").pixels != plain.pixels
    assert draw().pixels == plain.pixels


PROMPTS = {
    "empty": "",
    "white space": " \t\n\u2003",
    "longest": "word " * 1638 + "ab",
    "one long word": "a" * 8192,
    "every plane": "".join(map(chr, (*range(1, 0xD800, 37), *range(0xE000, 0x110000, 1901))))[:8192],
    "control": "".join(map(chr, range(1, 32))),
    "special tokens": "<|startoftext|><|endoftext|>" * 60,
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈" * 200,
    "not normalised": "e\u0301\u0327" * 300,
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_any_prompt_can_be_drawn(draw: Draw, prompt: str) -> None:
    image = draw(prompt=prompt, negative_prompt=prompt, steps=1)
    assert len(set(image.pixels)) > 50


def test_without_guidance_the_negative_prompt_is_not_used(draw: Draw) -> None:
    assert draw(guidance_scale=1, negative_prompt="x").pixels == draw(guidance_scale=1, negative_prompt="y").pixels


def test_it_draws_in_well_under_a_second(draw: Draw) -> None:
    draw()
    assert sum(draw(steps=4).timings.values()) < 1
