"""LoRAs of every build: what is imported is what the runner can load."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("ignore")]

torch = pytest.importorskip("torch")

import diffusers  # noqa: E402 - torch, only where it is installed
import safetensors.torch as safetensors  # noqa: E402 - likewise

from dreamforge.errors import ModelIncompatible  # noqa: E402 - likewise
from dreamforge.models.inspection import inspect  # noqa: E402 - likewise
from dreamforge.runners.loras import add_loras  # noqa: E402 - likewise
from tests import lora_files  # noqa: E402 - likewise

Tensors = Mapping[str, Any]
KOHYAS = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_q"
DIFFUSERS = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q"


def _renamed(tensors: Tensors, *changes: tuple[str, str]) -> Tensors:
    for old, new in changes:
        tensors = {re.sub(old, new, name): tensor for name, tensor in tensors.items()}
    return tensors


def _of_unet(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if "unet" in name}


def _sides(tensors: Tensors, down: str, up: str) -> Tensors:
    return _renamed(tensors, (r"lora_A\b", down), (r"lora_B\b", up))


def _processors(tensors: Tensors) -> Tensors:
    """Of attention alone, as diffusers wrote them first."""
    attention = {name: tensor for name, tensor in tensors.items() if re.search(r"unet.*\.to_[qv]\.", name)}
    return _renamed(
        attention, (r"(to_[qv])\.lora_A", r"processor.\1_lora.down"), (r"(to_[qv])\.lora_B", r"processor.\1_lora.up")
    )


LOADED: dict[str, Callable[[Tensors, Tensors], Tensors]] = {
    "kohya": lambda kohya, _: kohya,
    "kohya without alphas": lambda kohya, _: {name: kohya[name] for name in kohya if not name.endswith(".alpha")},
    "diffusers": lambda _, diffusers: diffusers,
    "diffusers, older": lambda _, diffusers: _sides(_of_unet(diffusers), "lora.down", "lora.up"),
    "diffusers, oldest": lambda _, diffusers: _processors(diffusers),
    "diffusers, linear layers": lambda _, diffusers: {
        **_of_unet(diffusers),
        **_sides(
            {name: diffusers[name] for name in diffusers if "unet" not in name},
            "lora_linear_layer.down",
            "lora_linear_layer.up",
        ),
    },
}
REFUSED: dict[str, Callable[[Tensors, Tensors], Tensors]] = {
    "lycoris": lambda kohya, _: _renamed(kohya, ("^lora_", "lycoris_")),
    "lycoris beside kohya": lambda kohya, _: _renamed(kohya, ("^lora_unet_", "lycoris_unet_")),
    "peft with its adapter's name": lambda _, diffusers: _sides(diffusers, "lora_A.default", "lora_B.default"),
    "the model's own names": lambda _, diffusers: _renamed(_of_unet(diffusers), ("^unet", "diffusion_model")),
    "no prefix": lambda _, diffusers: _renamed(_of_unet(diffusers), (r"^unet\.", "")),
    "linear layers in the UNet": lambda _, diffusers: _sides(
        _of_unet(diffusers), "lora_linear_layer.down", "lora_linear_layer.up"
    ),
    "kohya's sides": lambda _, diffusers: _sides(diffusers, "lora_down", "lora_up"),
    "an embedding beside kohya's": lambda kohya, _: {**kohya, "bundle_emb.x.string_to_param.*": torch.zeros(2, 32)},
    "an embedding beside diffusers'": lambda _, diffusers: {
        **diffusers,
        "bundle_emb.x.string_to_param.*": torch.zeros(2, 32),
    },
    "a bias beside kohya's": lambda kohya, _: {**kohya, f"{KOHYAS}.diff_b": torch.zeros(64)},
    "a bias beside diffusers'": lambda _, diffusers: {**diffusers, f"{DIFFUSERS}.diff_b": torch.zeros(64)},
    "an alpha beside diffusers'": lambda _, diffusers: {**diffusers, f"{DIFFUSERS}.alpha": torch.tensor(4.0)},
    "an alpha of no layer": lambda kohya, _: {**kohya, "lora_unet_x.alpha": torch.tensor(4.0)},
    "a middle": lambda kohya, _: {**kohya, f"{KOHYAS}.lora_mid.weight": torch.zeros(4, 4)},
    "half of kohya's": lambda kohya, _: {name: kohya[name] for name in kohya if name != f"{KOHYAS}.lora_up.weight"},
    "both": lambda kohya, diffusers: {**kohya, **diffusers},
}

# The runner would take these, with weights that nobody gave.
REFUSED_AT_ONCE: dict[str, Callable[[Tensors, Tensors], Tensors]] = {
    "a bias of peft's": lambda _, diffusers: {**diffusers, f"{DIFFUSERS}.lora_B.bias": torch.zeros(64)},
    "half of diffusers'": lambda _, diffusers: {
        name: diffusers[name] for name in diffusers if name != f"{DIFFUSERS}.lora_B.weight"
    },
}


@pytest.mark.parametrize("build", [*LOADED, *REFUSED, *REFUSED_AT_ONCE])
def test_what_is_imported_is_what_can_be_loaded(tiny_model: Path, tmp_path: Path, build: str) -> None:
    layers = lora_files.layers_for(tiny_model)
    kohya = safetensors.load_file(lora_files.write_kohya(layers, tmp_path / "kohya.safetensors"))
    diffusers_ = safetensors.load_file(next(lora_files.write_diffusers(layers, tmp_path / "lora").iterdir()))
    tensors = {**LOADED, **REFUSED, **REFUSED_AT_ONCE}[build](kohya, diffusers_)
    assert (set(tensors) in (set(kohya), set(diffusers_))) is (build in {"kohya", "diffusers"})
    path = tmp_path / "grain.safetensors"
    safetensors.save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    pipeline: Any = diffusers.StableDiffusionXLPipeline
    pipeline = pipeline.from_pretrained(str(tiny_model), local_files_only=True)

    def imports() -> object:
        return inspect(path, config=tiny_model)

    def loads() -> object:
        return add_loras(pipeline, [{"name": "grain", "path": str(path), "weight": 1.0}])

    for accept in (imports, loads):
        if build in LOADED:
            accept()
        elif build in REFUSED or accept is imports:
            with pytest.raises(ModelIncompatible, match="grain"):
                accept()
