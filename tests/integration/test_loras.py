"""What a LoRA may come as, and what it adds."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dreamforge.errors import ModelCorrupt, ModelIncompatible
from dreamforge.jobs.frames import PrepareStep

pytestmark = [
    pytest.mark.timeout(180),
    # What numpy and peft advise diffusers; the runner's own process shows none.
    pytest.mark.filterwarnings("ignore"),
]

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
from tests import lora_files  # noqa: E402 - torch, only where it is installed
from tests.integration.checkpoints import Pixels, difference, draw  # noqa: E402 - likewise

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA_LAYER = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"


def _lora(path: Path, weight: float = 1.0, *, name: str = "grain") -> dict[str, Any]:
    return {"name": name, "path": str(path), "weight": weight}


@pytest.mark.parametrize("weight", [1.0, 0.6, -1.5])
def test_a_lora_adds_to_the_weights_what_it_stands_for(
    plain: Pixels, call: PrepareStep, tiny_model: Path, tmp_path: Path, weight: float
) -> None:
    layers = lora_files.layers_for(tiny_model, alpha=2.0)
    model = shutil.copytree(tiny_model, tmp_path / "model")
    lora_files.add_to_folder(layers, model, weight=weight)
    file = lora_files.write_kohya(layers, tmp_path / "grain.safetensors")
    drawn = draw(replace(call, loras=[_lora(file, weight)]))
    assert difference(drawn, plain) > 16
    assert difference(drawn, draw(replace(call, model_path=str(model)))) <= 1


def test_each_layer_has_an_alpha_of_its_own(call: PrepareStep, tiny_model: Path, tmp_path: Path) -> None:
    layers = lora_files.layers_for(tiny_model)
    layers = [replace(layer, alpha=(4.0, 2.0, 8.0, 1.0)[place % 4]) for place, layer in enumerate(layers)]
    model = shutil.copytree(tiny_model, tmp_path / "model")
    lora_files.add_to_folder(layers, model, weight=1.0)
    file = lora_files.write_kohya(layers, tmp_path / "grain.safetensors")
    drawn = draw(replace(call, loras=[_lora(file)]))
    assert difference(drawn, draw(replace(call, model_path=str(model)))) <= 1


def test_kohyas_format_and_diffusers_mean_the_same_and_so_do_folder_and_file(
    call: PrepareStep, file_call: PrepareStep, tiny_model: Path, tmp_path: Path
) -> None:
    layers = lora_files.layers_for(tiny_model)
    kohya = lora_files.write_kohya(layers, tmp_path / "kohya.safetensors")
    folder = lora_files.write_diffusers(layers, tmp_path / "lora")
    first, *others = [
        draw(replace(of, loras=[_lora(path)]))
        for of, path in ((call, kohya), (call, folder), (file_call, next(folder.iterdir())))
    ]
    assert all((image == first).all() for image in others)


def test_several_loras_add_up_and_one_may_be_there_twice(
    plain: Pixels, call: PrepareStep, tiny_model: Path, tmp_path: Path
) -> None:
    one = lora_files.write_kohya(lora_files.layers_for(tiny_model, seed=1), tmp_path / "one.safetensors")
    # Of the UNet alone, as most are.
    layers = [layer for layer in lora_files.layers_for(tiny_model, seed=2) if layer.part == "unet"]
    two = lora_files.write_diffusers(layers, tmp_path / "two")
    both = draw(replace(call, loras=[_lora(one, 0.5), _lora(two, 0.7)]))
    for alone in ([], [_lora(one, 0.5)], [_lora(two, 0.7)]):
        assert difference(both, draw(replace(call, loras=alone))) > 4
    halves = draw(replace(call, loras=[_lora(two, 0.3), _lora(one, 0.5), _lora(two, 0.4)]))
    assert difference(both, halves) <= 1
    assert difference(draw(replace(call, loras=[_lora(one, 0.5), _lora(one, -0.5)])), plain) <= 1


def test_a_lora_of_weight_zero_changes_nothing(
    plain: Pixels, call: PrepareStep, tiny_model: Path, tmp_path: Path
) -> None:
    file = lora_files.write_kohya(lora_files.layers_for(tiny_model), tmp_path / "grain.safetensors")
    assert (draw(replace(call, loras=[_lora(file, 0)])) == plain).all()


def _wider(layer: lora_files.Layer) -> lora_files.Layer:
    return replace(layer, down=torch.ones(4, 768))


Change = Callable[[dict[str, Any]], dict[str, Any]]


def _renamed(old: str, new: str) -> Change:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def _beside(name: str, *shape: int) -> Change:
    return lambda tensors: tensors | {name: torch.ones(shape)}


def _kohya(change: Change) -> Callable[[list[lora_files.Layer], Path], Any]:
    def write(layers: list[lora_files.Layer], file: Path) -> None:
        safetensors.save_file(change(safetensors.load_file(lora_files.write_kohya(layers, file))), file)

    return write


def _diffusers(change: Change) -> Callable[[list[lora_files.Layer], Path], Any]:
    def write(layers: list[lora_files.Layer], file: Path) -> None:
        (ours,) = lora_files.write_diffusers(layers, file.with_suffix("")).iterdir()
        safetensors.save_file(change(safetensors.load_file(ours)), file)

    return write


FOREIGN: dict[str, Callable[[list[lora_files.Layer], Path], Any]] = {
    "another-width": lambda layers, file: lora_files.write_kohya([_wider(layer) for layer in layers], file),
    "another-depth": lambda layers, file: lora_files.write_kohya(
        layers, file, rename={"input_blocks_5": "input_blocks_7"}
    ),
    "more-encoder-layers": lambda layers, file: lora_files.write_kohya(layers, file, rename={"layers_2": "layers_9"}),
    "flux": lambda _, file: safetensors.save_file(
        {
            f"lora_unet_double_blocks_0_img_attn_qkv.lora_{end}.weight": torch.ones(4, 4).clone()
            for end in ("down", "up")
        },
        file,
    ),
    "diffusers-elsewhere": lambda _, file: safetensors.save_file(
        {f"transformer.blocks.0.attn.to_q.lora_{end}.weight": torch.ones(4, 4) * 1 for end in "AB"}, file
    ),
    "a-half": lambda _, file: safetensors.save_file({f"{LAYER}.lora_A.weight": torch.ones(4, 64)}, file),
    "lycoris": _kohya(_renamed("lora_unet_", "lycoris_unet_")),
    "lycoris-alone": _kohya(_renamed("lora_unet_", "lycoris_")),
    "pefts-adapter": _diffusers(_renamed(".weight", ".default.weight")),
    "stabilitys-names": _diffusers(_renamed("unet.", "diffusion_model.")),
    "no-names": _diffusers(_renamed("unet.", "")),
    "bundled-embedding": _kohya(_beside("bundle_emb.style.clip_l", 1, 32)),
    "bundled-embedding-in-diffusers": _diffusers(_beside("bundle_emb.style.clip_l", 1, 32)),
    "bias": _kohya(_beside(f"{KOHYA_LAYER}.diff_b", 64)),
    "bias-in-diffusers": _diffusers(_beside(f"{LAYER}.diff_b", 64)),
    "pefts-bias": _diffusers(_beside(f"{LAYER}.lora_B.bias", 64)),
    "pefts-dora": _diffusers(_beside(f"{LAYER}.lora_magnitude_vector", 64)),
    "dora": lambda layers, file: safetensors.save_file(
        safetensors.load_file(lora_files.write_kohya(layers, file)) | {f"{KOHYA_LAYER}.dora_scale": torch.ones(1, 64)},
        file,
    ),
    "no-lora": lambda _, file: safetensors.save_file({"emb_params": torch.ones(1, 4)}, file),
    "empty": lambda _, file: safetensors.save_file({}, file),
}


@pytest.mark.parametrize("write", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_lora_that_does_not_fit_is_named(
    call: PrepareStep, tiny_model: Path, tmp_path: Path, write: Callable[[list[lora_files.Layer], Path], Any]
) -> None:
    layers = lora_files.layers_for(tiny_model)
    fits = lora_files.write_kohya(layers, tmp_path / "fits.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    write(layers, foreign)
    with pytest.raises(ModelIncompatible, match="film") as caught:
        draw(replace(call, loras=[_lora(fits), _lora(foreign, name="film")]))
    assert caught.value.details["lora"] == "film"
    assert caught.value.details["reason"]
    assert str(tmp_path) not in caught.value.details["reason"]


@pytest.mark.parametrize("content", [b"", b"junk" * 100, None])
def test_a_lora_that_cannot_be_read_is_corrupt(call: PrepareStep, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "film.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelCorrupt) as caught:
        draw(replace(call, loras=[_lora(file, name="film")]))
    assert "film" in caught.value.details["reason"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["lora_unet_", "lora_te2_"])
def test_a_lora_with_weights_that_are_no_numbers_is_corrupt(
    call: PrepareStep, tiny_model: Path, tmp_path: Path, part: str, value: float
) -> None:
    file = lora_files.write_kohya(lora_files.layers_for(tiny_model), tmp_path / "film.safetensors")
    tensors = safetensors.load_file(file)
    tensors[next(name for name in tensors if name.startswith(part) and "lora_up" in name)][0, 0] = value
    safetensors.save_file(tensors, file)
    with pytest.raises(ModelCorrupt) as caught:
        draw(replace(call, loras=[_lora(file, name="film")]))
    assert "film" in caught.value.details["reason"]
