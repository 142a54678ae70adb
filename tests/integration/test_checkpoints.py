"""What a model may come as: a folder or one file, in each precision, and with another VAE."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dreamforge.errors import ModelCorrupt
from dreamforge.jobs.frames import PrepareStep

pytestmark = [
    pytest.mark.timeout(180),
    # What numpy and peft advise diffusers; the runner's own process shows none.
    pytest.mark.filterwarnings("ignore"),
]

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
from tests import lora_files, single_file  # noqa: E402 - torch, only where it is installed
from tests.integration.checkpoints import Pixels, difference, draw, edit, of_file  # noqa: E402 - likewise


def test_a_file_draws_what_its_folder_draws(plain: Pixels, file_call: PrepareStep) -> None:
    assert (draw(file_call) == plain).all()


@pytest.mark.parametrize(("dtype", "most"), [("float16", 16), ("bfloat16", 64)])
def test_files_in_half_precision_draw_nearly_the_same(
    plain: Pixels, call: PrepareStep, tiny_model: Path, tmp_path: Path, dtype: str, most: int
) -> None:
    drawn = draw(of_file(call, tiny_model, tmp_path, dtype=dtype))
    assert 0 < difference(drawn, plain) < most


def test_a_folder_with_fp16_files_alone_is_read(
    plain: Pixels, call: PrepareStep, tiny_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    for path in model.rglob("*.safetensors"):
        halved = {name: tensor.half() for name, tensor in safetensors.load_file(path).items()}
        safetensors.save_file(halved, path.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        path.unlink()
    assert 0 < difference(draw(replace(call, model_path=str(model))), plain) < 16


def test_components_that_a_folder_names_and_nobody_needs_are_passed_over(
    plain: Pixels, call: PrepareStep, tiny_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    edit(model / "model_index.json", image_encoder=["transformers", "CLIPVisionModelWithProjection"], more=["a", "B"])
    assert (draw(replace(call, model_path=str(model))) == plain).all()


def test_what_a_file_says_of_its_prediction_counts(
    plain: Pixels, call: PrepareStep, tiny_model: Path, tmp_path: Path
) -> None:
    def predict_velocity(weights: dict[str, Any]) -> None:
        weights["v_pred"] = weights["ztsnr"] = torch.tensor([])

    from dreamforge.runners.loading import load  # noqa: PLC0415 - torch

    changed = of_file(call, tiny_model, tmp_path, change=predict_velocity)
    config = load(changed).scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    assert difference(draw(changed), plain) > 16


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_a_cpu_computes_in_float32_and_a_gpu_in_half_of_it(tmp_path: Path, stored: str) -> None:
    from dreamforge.runners.precision import stored_dtype, unet_dtype, vae_dtype  # noqa: PLC0415 - torch

    file = tmp_path / "model.safetensors"
    other, ours = torch.zeros(1), torch.zeros(1, dtype=getattr(torch, stored))
    safetensors.save_file({"a.weight": other, "b.weight": ours}, file)
    assert stored_dtype([file], prefix="b.") == ours.dtype
    assert stored_dtype([file], prefix="c.") == torch.float32
    knows_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    half = torch.bfloat16 if stored == "bfloat16" and knows_bfloat16 else torch.float16
    assert (unet_dtype("cpu", ours.dtype), unet_dtype("cuda", ours.dtype)) == (torch.float32, half)
    full = torch.bfloat16 if knows_bfloat16 else torch.float32
    assert (vae_dtype("cpu", "bfloat16"), vae_dtype("cuda", "bfloat16")) == (torch.float32, full)
    assert vae_dtype("cuda", "float32") == torch.float32


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(weights: dict[str, Any]) -> None:
        found = [key for key in weights if key.startswith(name)]
        assert found
        for key in found:
            del weights[key]

    return change


def _of_another_width(weights: dict[str, Any]) -> None:
    key = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    weights[key] = torch.zeros(64, 64)


CHANGES = {
    "no-unet": _without("model.diffusion_model."),
    "no-layer-of-the-unet": _without("model.diffusion_model.output_blocks.5.0.in_layers.2.weight"),
    "no-vae": _without("first_stage_model."),
    "no-layer-of-the-vae": _without("first_stage_model.decoder.conv_out.bias"),
    "no-text-encoder": _without("conditioner.embedders.0."),
    "no-second-text-encoder": _without("conditioner.embedders.1."),
    "no-positions": _without("conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight"),
    "no-projection": _without("conditioner.embedders.1.model.text_projection"),
    "no-layer-of-an-encoder": _without("conditioner.embedders.1.model.transformer.resblocks.2.attn.in_proj_weight"),
    "another-width": _of_another_width,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_file_without_all_of_its_weights_is_corrupt_even_where_the_configuration_has_them(
    call: PrepareStep, tiny_model: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    with pytest.raises(ModelCorrupt) as caught:
        draw(of_file(call, tiny_model, tmp_path, change=change))
    assert caught.value.details["reason"]
    assert str(tmp_path) not in caught.value.details["reason"]


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_a_folder_that_lacks_one_weight_is_corrupt(
    call: PrepareStep, tiny_model: Path, tmp_path: Path, part: str
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (path,) = (model / part).glob("*.safetensors")
    weights = safetensors.load_file(path)
    del weights[sorted(weights)[-1]]
    safetensors.save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelCorrupt) as caught:
        draw(replace(call, model_path=str(model)))
    assert part in caught.value.details["reason"]


@pytest.mark.parametrize("kept", [0, 7, 1000, -1000])
def test_a_cut_file_is_corrupt(file_call: PrepareStep, tmp_path: Path, kept: int) -> None:
    whole = Path(file_call.model_path).read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[:kept])
    with pytest.raises(ModelCorrupt):
        draw(replace(file_call, model_path=str(cut)))


def test_a_pickle_is_never_opened(file_call: PrepareStep, tmp_path: Path) -> None:
    class Deed:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "done"),)

    pickled = tmp_path / "model.ckpt"
    torch.save({"state_dict": Deed()}, pickled)
    for path in (pickled, shutil.copy(pickled, tmp_path / "model.safetensors")):
        for call in (replace(file_call, model_path=str(path)), replace(file_call, vae_path=str(path))):
            with pytest.raises(ModelCorrupt):
                draw(call)
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize(
    "index",
    [
        {"scheduler": ["os", "system"]},
        {"scheduler": ["diffusers", "AutoencoderKL"]},
        {"scheduler": None},
        {"_class_name": ["pipeline", "MyPipeline"]},
    ],
    ids=str,
)
def test_a_folder_does_not_choose_what_is_run(
    call: PrepareStep, tiny_model: Path, tmp_path: Path, index: dict[str, Any]
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "pipeline.py").write_text("raise SystemExit('run')")
    edit(model / "model_index.json", **index)
    with pytest.raises(ModelCorrupt):
        draw(replace(call, model_path=str(model)))


@pytest.fixture(scope="module")
def other_vae(tiny_model: Path) -> dict[str, Any]:
    """The weights of a VAE that draws darker."""
    weights = safetensors.load_file(tiny_model / "vae" / "diffusion_pytorch_model.safetensors")
    return weights | {"decoder.conv_out.bias": weights["decoder.conv_out.bias"] - 0.5}


def test_a_vae_of_its_own_is_taken_as_a_folder_and_as_a_file_of_either_kind(
    plain: Pixels,
    call: PrepareStep,
    file_call: PrepareStep,
    tiny_model: Path,
    tmp_path: Path,
    other_vae: dict[str, Any],
) -> None:
    folder = shutil.copytree(tiny_model / "vae", tmp_path / "vae")
    ours, theirs = folder / "diffusion_pytorch_model.safetensors", tmp_path / "theirs.safetensors"
    safetensors.save_file(other_vae, ours, metadata={"format": "pt"})
    named = single_file.vae_names(other_vae)
    safetensors.save_file({name: tensor.contiguous() for name, tensor in named.items()}, theirs)
    drawn = [draw(replace(of, vae_path=str(path))) for of in (call, file_call) for path in (folder, ours, theirs)]
    assert difference(drawn[0], plain) > 16
    assert all((image == drawn[0]).all() for image in drawn)


def test_with_a_vae_of_its_own_the_file_needs_none(
    plain: Pixels, call: PrepareStep, tiny_model: Path, tmp_path: Path
) -> None:
    without = of_file(call, tiny_model, tmp_path, change=_without("first_stage_model."))
    assert (draw(replace(without, vae_path=str(tiny_model / "vae"))) == plain).all()


@pytest.mark.parametrize("kind", ["gone", "empty-folder", "another-model"])
def test_a_vae_that_is_none_is_corrupt(call: PrepareStep, tmp_path: Path, kind: str) -> None:
    vae = tmp_path / "vae.safetensors"
    if kind == "empty-folder":
        vae.mkdir()
    elif kind == "another-model":
        safetensors.save_file({"decoder.conv_in.weight": torch.zeros(4, 4)}, vae)
    with pytest.raises(ModelCorrupt) as caught:
        draw(replace(call, vae_path=str(vae)))
    assert "VAE" in caught.value.details["reason"]


_ALONE = """
import json, sys
from dreamforge.runners import conversation
conversation._quieten()
import socket
def refuse(*_, **__):
    raise AssertionError("it asked the network")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from dreamforge.jobs.frames import PrepareStep
from dreamforge.runners.loading import load
pipeline = load(PrepareStep(**json.loads(sys.argv[1])))
print(sorted(name for name, component in pipeline.components.items() if component is not None))
"""


def test_nothing_of_it_needs_a_network_nor_a_cache(file_call: PrepareStep, tiny_model: Path, tmp_path: Path) -> None:
    lora = lora_files.write_kohya(lora_files.layers_for(tiny_model), tmp_path / "grain.safetensors")
    call = replace(
        file_call, vae_path=file_call.model_path, loras=[{"name": "grain", "path": str(lora), "weight": 1.0}]
    )
    # Not even where Hugging Face's libraries are allowed to.
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "empty"),
        "HF_HUB_OFFLINE": "0",
        "HTTPS_PROXY": "http://[::1]:1",
    }
    command = [sys.executable, "-c", _ALONE, json.dumps(call.__dict__)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout.replace("'", '"'))) == 7
