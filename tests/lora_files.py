"""LoRAs for a model's folder, as kohya's trainer and diffusers write them.

kohya's names are those of `networks/lora.py` in kohya-ss/sd-scripts, of the UNet with Stability's names for its layers;
diffusers' those of `save_lora_weights`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.single_file import unet_names

_PARTS = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
_ENDS = ("to_q", "to_v", "to_out.0", "ff.net.2", "q_proj", "v_proj", "self_attn.out_proj", "fc1")
_RANK = 4


@dataclass(frozen=True)
class Layer:
    """What a LoRA adds to one layer: ``up @ down * alpha / rank``."""

    part: str
    name: str
    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    @property
    def delta(self) -> torch.Tensor:
        """The sum that the layer's weights gain at weight 1."""
        return self.up @ self.down * (self.alpha / _RANK)


def layers_for(folder: Path, *, seed: int = 1, alpha: float = _RANK, strength: float = 0.2) -> list[Layer]:
    """Random layers for attention and feed-forward of UNet and both text encoders."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[Layer] = []
    for part in _PARTS:
        for name, weight in _weights(folder / part).items():
            if name.removesuffix(".weight").endswith(_ENDS) and weight.ndim == 2:
                up, down = ((weight.shape[0], _RANK), (_RANK, weight.shape[1]))
                downs, ups = (torch.randn(shape, generator=generator) * strength for shape in (down, up))
                layers.append(Layer(part, name.removesuffix(".weight"), downs, ups, alpha))
    return layers


def write_kohya(layers: list[Layer], file: Path, *, rename: Mapping[str, str] | None = None) -> Path:
    """As kohya's trainer does; ``rename`` replaces parts of names."""
    tensors: dict[str, torch.Tensor] = {}
    for layer in layers:
        name = layer.name
        if layer.part == "unet":
            (name,) = unet_names({f"{name}.": layer.down})
        else:
            name = f"text_model.{name.removeprefix('text_model.')}"
        key = _PARTS[layer.part] + name.rstrip(".").replace(".", "_")
        for old, new in (rename or {}).items():
            key = key.replace(old, new)
        tensors |= {
            f"{key}.lora_down.weight": layer.down,
            f"{key}.lora_up.weight": layer.up,
            f"{key}.alpha": torch.tensor(layer.alpha),
        }
    save_file(tensors, file)
    return file


def write_diffusers(layers: list[Layer], folder: Path) -> Path:
    """As diffusers does, into a folder; such a file knows no alpha."""
    folder.mkdir(exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for layer in layers:
        tensors[f"{layer.part}.{layer.name}.lora_A.weight"] = layer.down
        tensors[f"{layer.part}.{layer.name}.lora_B.weight"] = layer.up
    save_file(tensors, folder / "pytorch_lora_weights.safetensors")
    return folder


def add_to_folder(layers: list[Layer], folder: Path, *, weight: float) -> None:
    """What the LoRA stands for, done to the weights of a model's folder."""
    for part in _PARTS:
        (file,) = (folder / part).glob("*.safetensors")
        weights = load_file(file)
        for layer in layers:
            if layer.part == part:
                weights[f"{layer.name}.weight"] = weights[f"{layer.name}.weight"] + weight * layer.delta
        save_file(weights, file, metadata={"format": "pt"})


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)
