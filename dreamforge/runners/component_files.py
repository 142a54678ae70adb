"""SDXL's components from their files: a folder in diffusers' layout, or one file with the names of Stability's code.

What diffusers and transformers pass over is an error here: a weight that no file holds, which they draw at random, and
pickles, which they would run.
"""

import inspect
import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, SchedulerMixin, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError, create_diffusers_clip_model_from_ldm
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from dreamforge.errors import ModelCorrupt
from dreamforge.jobs.frames import PrepareStep
from dreamforge.runners.finite import endless
from dreamforge.runners.precision import stored_dtype, unet_dtype, vae_dtype
from dreamforge.runners.scheduling import own_scheduler
from dreamforge.runners.vocabulary import has_vocabulary, tokenizer

# What diffusers, transformers and safetensors raise for missing, cut, mismatched or foreign files.
_UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    RuntimeError,
    ArithmeticError,
    SafetensorError,
    SingleFileComponentError,
)
_REASON_LENGTH = 300
_SUFFIX = ".safetensors"
_UNET_PREFIX = "model.diffusion_model."
_CLASSES: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
_TOKENIZERS = ("tokenizer", "tokenizer_2")


def of_folder(folder: Path, call: PrepareStep, *, vae: Any = None) -> dict[str, Any]:
    """The components of a folder in diffusers' layout, as the pipeline's arguments. Raises ``ModelCorrupt``."""
    with unreadable(folder):
        index = _index(folder)
        dtype = unet_dtype(call.device, stored_dtype(sorted((folder / "unet").glob(f"*{_SUFFIX}"))))
        dtypes = {"vae": vae_dtype(call.device, call.vae_dtype)}
        return {
            "force_zeros_for_empty_prompt": bool(index.get("force_zeros_for_empty_prompt", True)),
            "scheduler": own_scheduler(_scheduler_class(index).load_config(str(folder), subfolder="scheduler")),
            **{name: tokenizer(folder / name) for name in _TOKENIZERS},
            **{
                name: vae if name == "vae" and vae is not None else _model(name, folder / name, dtypes.get(name, dtype))
                for name in _CLASSES
            },
        }


def of_file(path: Path, config: Path, call: PrepareStep, *, vae: Any = None) -> dict[str, Any]:
    """The components of a single file, as the pipeline's arguments. Raises ``ModelCorrupt``.

    ``config`` is a folder in diffusers' layout that describes them; weights in it are not looked at.
    """
    with unreadable(path, config):
        checkpoint = _read(path)
        dtype = unet_dtype(call.device, stored_dtype([path], prefix=_UNET_PREFIX))
        return {
            "scheduler": _scheduler_of(checkpoint, config, predicts_velocity=_predicts_velocity(path)),
            **{name: tokenizer(config / name) for name in _TOKENIZERS},
            "unet": _converted("unet", checkpoint, config, dtype),
            "vae": vae or _converted("vae", checkpoint, config, vae_dtype(call.device, call.vae_dtype)),
            **{name: _text_encoder(name, checkpoint, config, dtype) for name in ("text_encoder", "text_encoder_2")},
        }


def vae_of(path: Path, config: Path, *, dtype: torch.dtype) -> Any:
    """A VAE of its own: a folder in diffusers' layout, or one file with diffusers' names or Stability's.

    ``config`` is the folder of the model that it is for; a file is read as a VAE of the same shape. Raises
    ``ModelCorrupt``.
    """
    with unreadable(path, config, what="the VAE"):
        if path.is_file():
            return _converted("vae", _read(path), config, dtype)
        inner = path / "vae"
        return _model("vae", inner if inner.is_dir() else path, dtype)


@contextmanager
def unreadable(*paths: Path, what: str = "") -> Generator[None]:
    """Whatever a library says of files it cannot read, as ``ModelCorrupt``, and without the paths."""
    try:
        yield
    except _UNREADABLE as error:
        reason = f"{what}: {_reason(error)}" if what else _reason(error)
        for path in paths:
            reason = reason.replace(str(path), "MODEL")
        raise ModelCorrupt(details={"reason": reason[:_REASON_LENGTH]}) from error


def _reason(error: Exception) -> str:
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def _index(folder: Path) -> dict[str, Any]:
    """What diffusers would pass over: it loads another kind of pipeline without a word, takes classes from wherever the
    index says, and makes an empty tokenizer where the files are gone.
    """
    try:
        index: dict[str, Any] = json.loads((folder / "model_index.json").read_text())
        kind = str(index["_class_name"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError("model_index.json is missing or unreadable") from error
    if not kind.startswith("StableDiffusionXL"):
        raise ValueError(f"model_index.json is of a {kind[:100]}")
    for name in _TOKENIZERS:
        if not has_vocabulary(folder / name):
            raise ValueError(f"{name} has no vocabulary")
    return index


def _scheduler_class(index: dict[str, Any]) -> Any:
    _, name = index["scheduler"]
    kind = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ValueError(f"diffusers has no scheduler {str(name)[:100]}")
    if "beta_schedule" not in inspect.signature(kind.__init__).parameters:
        # EDM's, and those of flow matching: the noise is another, and is told otherwise.
        raise ValueError(f"its scheduler is {str(name)[:100]}, of another kind of model")
    return kind


def _scheduler_of(checkpoint: dict[str, torch.Tensor], config: Path, *, predicts_velocity: bool) -> Any:
    """The configuration's scheduler, with what the file says of it: see SDXL in ComfyUI's comfy/supported_models.py."""
    told: dict[str, Any] = {}
    if predicts_velocity or "v_pred" in checkpoint:
        told["prediction_type"] = "v_prediction"
    if "ztsnr" in checkpoint:
        told["rescale_betas_zero_snr"] = True
    kind: Any = EulerDiscreteScheduler  # its annotations allow for more than a dictionary
    return own_scheduler(kind.load_config(str(config), subfolder="scheduler") | told)


def _predicts_velocity(path: Path) -> bool:
    """What kohya's sd-scripts write of it: see library/sai_model_spec.py."""
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("modelspec.prediction_type") in {"v", "v_prediction"}


def _model(name: str, folder: Path, dtype: torch.dtype) -> Any:
    if not folder.is_dir():
        # Libraries take it for the name of a repository.
        raise ValueError(f"{name} is missing")
    model, told = _CLASSES[name].from_pretrained(
        str(folder),
        dtype=dtype,
        variant=_variant(folder),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    left_out = sorted(map(str, [*told["missing_keys"], *told["mismatched_keys"]]))
    if left_out:
        raise ValueError(f"{name} lacks {len(left_out)} weights, {left_out[0]} among them")
    return _whole(name, model)


def _variant(folder: Path) -> str | None:
    """fp16 where there are no other weights: many folders hold those alone."""
    names = [path.name for path in folder.glob(f"*{_SUFFIX}*")]
    return "fp16" if names and all(".fp16" in name for name in names) else None


def _read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix != _SUFFIX:
        raise ValueError(f"it is no {_SUFFIX} file")
    return safetensors.torch.load_file(path)


def _converted(name: str, checkpoint: dict[str, torch.Tensor], config: Path, dtype: torch.dtype) -> Any:
    model = _CLASSES[name].from_single_file(
        checkpoint, config=str(config), subfolder=name, dtype=dtype, local_files_only=True
    )
    return _whole(name, model)


def _text_encoder(name: str, checkpoint: dict[str, torch.Tensor], config: Path, dtype: torch.dtype) -> Any:
    # Not by the pipeline's own from_single_file: for an encoder that the file lacks it takes weights it finds beside
    # the configuration.
    create: Callable[..., Any] = create_diffusers_clip_model_from_ldm
    model = create(
        _CLASSES[name], checkpoint, subfolder=name, config=str(config), torch_dtype=dtype, local_files_only=True
    )
    return _whole(name, model)


def _whole(name: str, model: Any) -> Any:
    """The model, when it has every weight and each is a number: diffusers leaves what no file holds without data."""
    weights = model.state_dict()
    left_out = [weight for weight, tensor in weights.items() if tensor.is_meta]
    if left_out:
        raise ValueError(f"{name} lacks {len(left_out)} weights, {left_out[0]} among them")
    if spoilt := endless(weights.items()):
        raise ValueError(f"{name} has weights that are no numbers in {model.dtype}, {spoilt} among them")
    return model
