"""From pixels to the bytes of a file that says how it was made."""

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import cast

from dreamforge import __version__
from dreamforge.images.encode import encode
from dreamforge.images.manifest import Manifest, ManifestLora, ManifestModel, ManifestPreset, ManifestVae
from dreamforge.images.parameters_text import parameters_text
from dreamforge.jobs.frames import ItemDrawn
from dreamforge.jobs.image_format import DEFAULT_QUALITY, PNG
from dreamforge.jobs.memory_ladder import savings
from dreamforge.jobs.presets import preset_of
from dreamforge.store.companions import StepLora, StepModel
from dreamforge.store.step_calls import StepCall
from dreamforge.worker.spool import EncodedImage


@dataclass(frozen=True)
class Origin:
    """Where the images of this attempt come from, for their keys and their metadata."""

    job_id: uuid.UUID
    attempt: int
    call: StepCall
    versions: dict[str, str]
    device_name: str
    dtype: str | None = None
    batch_size: int = 1


def encoded(drawn: ItemDrawn, origin: Origin) -> EncodedImage:
    """The image as a file of the job's format. Jobs of an older version name no quality."""
    manifest, params = manifest_of(drawn, origin), origin.call.params
    format = params.get("format") or PNG
    data = encode(
        drawn.pixels,
        width=drawn.width,
        height=drawn.height,
        format=format,
        quality=params.get("quality") or DEFAULT_QUALITY,
        parameters=parameters_text(manifest),
        manifest=manifest.as_text(),
    )
    return EncodedImage(
        item_index=drawn.item_index,
        seed=drawn.seed,
        width=drawn.width,
        height=drawn.height,
        timings=drawn.timings,
        metadata={
            "versions": origin.versions,
            "device": origin.device_name,
            "memory_savings": list(savings(origin.call.rung)),
            "preset": asdict(_preset(origin.call)),
            "batch_size": origin.batch_size,
        },
        data=data,
        format=format,
    )


def manifest_of(drawn: ItemDrawn, origin: Origin) -> Manifest:
    """What the file says about how it was made."""
    call = origin.call
    return Manifest(
        job_id=str(origin.job_id),
        item_index=drawn.item_index,
        attempt=origin.attempt,
        type=call.job_type,
        params=call.params,
        seed=drawn.seed,
        width=drawn.width,
        height=drawn.height,
        model=_model(call.model),
        versions={"dreamforge": __version__, **origin.versions},
        loras=tuple(_lora(lora) for lora in call.companions.loras),
        vae=_vae(call.companions.vae),
        device=origin.device_name,
        dtype=origin.dtype,
        preset=_preset(call),
        batch_size=origin.batch_size,
        rung=call.rung,
        memory_savings=savings(call.rung),
    )


def _model(model: StepModel | None) -> ManifestModel | None:
    if model is None:
        return None
    version_id, air = _civitai_names(model)
    return ManifestModel(
        name=model.name, version=model.version, sha256=model.checkpoint_hash, air=air, model_version_id=version_id
    )


def _lora(lora: StepLora) -> ManifestLora:
    model = lora.model
    version_id, air = _civitai_names(model)
    return ManifestLora(
        name=model.name,
        version=model.version,
        weight=lora.weight,
        sha256=model.checkpoint_hash,
        tensor_hash=model.metadata.get("tensor_hash"),
        air=air,
        model_version_id=version_id,
    )


def _civitai_names(model: StepModel) -> tuple[int | None, str | None]:
    """What Civitai calls it: the id of its version and its `urn:air:…`, where the registry knows them."""
    said: object = model.metadata.get("civitai")
    if not isinstance(said, Mapping):
        return None, None
    names = cast("Mapping[str, object]", said)
    version_id, air = names.get("model_version_id"), names.get("air")
    # To Python a bool is an int.
    is_id = isinstance(version_id, int) and not isinstance(version_id, bool)
    return cast("int", version_id) if is_id else None, air if isinstance(air, str) else None


def _vae(model: StepModel | None) -> ManifestVae | None:
    return ManifestVae(name=model.name, version=model.version, sha256=model.checkpoint_hash) if model else None


def _preset(call: StepCall) -> ManifestPreset:
    preset = preset_of(call.params)
    return ManifestPreset(name=preset.name, version=preset.version)
