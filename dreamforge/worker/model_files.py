"""From a step's call to what its runner is told to load: the files of its models on this node."""

from pathlib import Path

from dreamforge.errors import ModelCorrupt
from dreamforge.jobs.frames import PrepareStep
from dreamforge.jobs.memory_ladder import savings
from dreamforge.jobs.presets import preset_of
from dreamforge.store.companions import StepModel
from dreamforge.store.step_calls import StepCall
from dreamforge.worker.node import Node

CONFIG_PATH = "config_path"
"""Where a model's metadata say which folder describes its components."""


def prepare_step(call: StepCall, *, device: str, node: Node) -> PrepareStep:
    """What the runner of a call is told first. Raises ``ModelCorrupt`` for files that are not on this node."""
    preset, companions = preset_of(call.params), call.companions
    if companions.missing:
        raise _missing(companions.missing[0], node)
    model_path = _path(call.model, node)
    config: str | None = call.model.metadata.get(CONFIG_PATH) if call.model else None
    if config is not None and not Path(config).is_dir():
        raise _missing("the folder of its configuration", node)
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


def _path(model: StepModel | None, node: Node) -> str:
    if model is None or model.local_path is None or not Path(model.local_path).exists():
        raise _missing(f"{model.name}@{model.version}" if model else None, node)
    return model.local_path


def _missing(what: str | None, node: Node) -> ModelCorrupt:
    return ModelCorrupt(
        "The model's files are not on this node.", details={"model": what, "node": node.name, "node_id": node.id}
    )
