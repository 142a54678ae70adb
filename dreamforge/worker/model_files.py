"""From a step's call to what its runner is told to load: the files of its models on this node."""

from pathlib import Path

from dreamforge.errors import ModelCorrupt
from dreamforge.jobs.frames import PrepareStep
from dreamforge.jobs.memory_ladder import savings
from dreamforge.jobs.presets import preset_of
from dreamforge.models.inspection import Layout
from dreamforge.store.companions import StepModel
from dreamforge.store.step_calls import StepCall
from dreamforge.worker.node import Node

CONFIG_PATH = "config_path"
"""Where a model's metadata say which folder describes its components: absolute, or relative to the model's folder."""


def prepare_step(call: StepCall, *, device: str, node: Node) -> PrepareStep:
    """What the runner of a call is told first. Raises ``ModelCorrupt`` for files that are not on this node."""
    preset, companions = preset_of(call.params), call.companions
    if companions.missing:
        raise not_here(companions.missing[0], node)
    model_path = _path(call.model, node)
    config = _config(call.model, node) if call.model else None
    return PrepareStep(
        step=call.step,
        model_kind=call.model.kind if call.model else "",
        model_path=model_path,
        device=device,
        params=call.params,
        savings=list(savings(call.rung)),
        vae_dtype=preset.vae_dtype,
        is_channels_last=preset.is_channels_last,
        config_path=config,
        vae_path=_path(companions.vae, node) if companions.vae else None,
        loras=[
            {"name": lora.model.name, "path": _path(lora.model, node), "weight": lora.weight}
            for lora in companions.loras
        ],
    )


def main_file(model: StepModel) -> str | None:
    """The file that is the model, relative to its folder; None where the folder is."""
    if model.metadata.get("layout", Layout.FILE) != Layout.FILE:
        return None
    name = Path(model.local_path or "").name
    return name if name in {file.path for file in model.files} else None


def _config(model: StepModel, node: Node) -> str | None:
    told: str | None = model.metadata.get(CONFIG_PATH)
    if told is None:
        return None
    path = Path(model.local_path or "")
    # One that came with the model is in its folder, wherever that is on this node.
    folder = (path.parent if main_file(model) else path) / told
    if not folder.is_dir():
        raise not_here("the folder of its configuration", node)
    return str(folder)


def _path(model: StepModel | None, node: Node) -> str:
    if model is None or model.local_path is None or not Path(model.local_path).exists():
        raise not_here(f"{model.name}@{model.version}" if model else None, node)
    return model.local_path


def not_here(what: str | None, node: Node) -> ModelCorrupt:
    """Files that a step needs, and that are nowhere on its node: ``what`` they are of."""
    return ModelCorrupt(
        "The model's files are not on this node.", details={"model": what, "node": node.name, "node_id": node.id}
    )
