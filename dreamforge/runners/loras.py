"""LoRAs, added to a pipeline's weights."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dreamforge.errors import ModelIncompatible
from dreamforge.runners.component_files import unreadable
from dreamforge.runners.finite import endless

# What diffusers, transformers and peft raise for layers that are not there or have another shape.
_UNFIT = (ValueError, RuntimeError, LookupError, TypeError, AttributeError)
_REASON_LENGTH = 300
_ADAPTER = "lora"
_DORA = ("dora_scale", "lora_magnitude_vector")
_DOWN, _UP, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
_PARTS = ("unet", "text_encoder", "text_encoder_2")


def add_loras(pipeline: Any, loras: Sequence[Mapping[str, Any]]) -> None:
    """Add LoRAs to the weights, each by its `path`, times its `weight`; its `name` is for messages.

    A path is a `.safetensors` file, or a folder with one, in kohya's format or diffusers'. The weights are changed for
    good, one LoRA after the other: drawing costs nothing more then, and differs from adding them while it draws by the
    rounding of one addition. Raises ``ModelCorrupt`` for a file that cannot be read, and ``ModelIncompatible`` for one
    of which anything finds no place in the model.
    """
    for lora in loras:
        if lora["weight"] != 0:
            _add(pipeline, name=str(lora["name"]), path=Path(lora["path"]), weight=float(lora["weight"]))


def _add(pipeline: Any, *, name: str, path: Path, weight: float) -> None:
    with unreadable(path, what=f"the LoRA {name}"):
        file = _file(path)
        # First of all: what fails later is no fault of the file's.
        with safe_open(file, framework="pt") as content:
            names = list(content.keys())
        source = _scaled(load_file(file)) if any(each.endswith(_ALPHA) for each in names) else str(file)
    if any(part in each for each in names for part in _DORA):
        # diffusers leaves the scales out, and draws something else.
        raise _unfit(name, "it is a DoRA, which is not supported")
    with _fitting(name, file):
        expected = _tensors(pipeline, source)
        pipeline.load_lora_weights(source, adapter_name=_ADAPTER, use_safetensors=True, local_files_only=True)
    placed = _placed(pipeline)
    if not expected or not placed == expected == _made(pipeline):
        raise _unfit(name, f"{placed} of its {expected} tensors belong to layers of this model")
    with unreadable(path, what=f"the LoRA {name}"):
        _check_numbers(pipeline)
    with _fitting(name, file):
        pipeline.set_adapters([_ADAPTER], [weight])
        pipeline.fuse_lora(components=[part for part in _PARTS if _layers(getattr(pipeline, part))])
    pipeline.unload_lora_weights()


@contextmanager
def _fitting(name: str, file: Path) -> Generator[None]:
    try:
        yield
    except _UNFIT as error:
        raise _unfit(name, f"{type(error).__name__}: {error}".replace(str(file), "LORA")) from error


def _scaled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """kohya's layers without their alphas, which are multiplied in.

    diffusers draws with another alpha where one layer's is not that of most.
    """
    for layer in [name.removesuffix(_ALPHA) for name in tensors if name.endswith(_ALPHA)]:
        if f"{layer}{_DOWN}" in tensors and f"{layer}{_UP}" in tensors:
            rank = tensors[f"{layer}{_DOWN}"].shape[0]
            alpha = float(tensors.pop(f"{layer}{_ALPHA}"))
            tensors[f"{layer}{_UP}"] = tensors[f"{layer}{_UP}"].float() * (alpha / rank)
    return tensors


def _check_numbers(pipeline: Any) -> None:
    layers = ((part, tensor) for part in _PARTS for tensor in _layers(getattr(pipeline, part)))
    if part := endless(layers):
        raise ValueError(f"it has weights for {part} that are no numbers")


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise ValueError(f"{len(files)} .safetensors files where one is expected")
    return files[0]


def _tensors(pipeline: Any, source: str | dict[str, torch.Tensor]) -> int:
    """How many tensors the file adds, by diffusers' names."""
    state, _ = pipeline.lora_state_dict(
        dict(source) if isinstance(source, dict) else source,
        unet_config=pipeline.unet.config,
        use_safetensors=True,
        local_files_only=True,
    )
    return sum(not name.endswith(".alpha") for name in state)


def _placed(pipeline: Any) -> int:
    return sum(not tensor.is_meta for part in _PARTS for tensor in _layers(getattr(pipeline, part)))


def _made(pipeline: Any) -> int:
    """How many tensors diffusers made place for, be there values for them or not."""
    return sum(len(_layers(getattr(pipeline, part))) for part in _PARTS)


def _layers(model: Any) -> list[Any]:
    return [tensor for name, tensor in model.named_parameters() if f".{_ADAPTER}." in name]


def _unfit(name: str, reason: str) -> ModelIncompatible:
    return ModelIncompatible(
        f"The LoRA {name} does not fit the model.", details={"lora": name, "reason": reason[:_REASON_LENGTH]}
    )
