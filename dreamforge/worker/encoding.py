"""From pixels to the bytes of a file that says how it was made."""

import uuid
from dataclasses import dataclass
from typing import Any

from dreamforge import __version__
from dreamforge.images.encode import encode
from dreamforge.images.manifest import Manifest, ManifestModel, ManifestPreset
from dreamforge.images.parameters_text import parameters_text
from dreamforge.jobs.frames import ItemDrawn
from dreamforge.jobs.image_format import DEFAULT_QUALITY, PNG
from dreamforge.jobs.memory_ladder import savings
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
        model=_model(call),
        versions={"dreamforge": __version__, **origin.versions},
        device=origin.device_name,
        preset=_preset(call.params),
        rung=call.rung,
        memory_savings=savings(call.rung),
    )


def _model(call: StepCall) -> ManifestModel | None:
    model = call.model
    return ManifestModel(name=model.name, version=model.version, sha256=model.checkpoint_hash) if model else None


def _preset(params: dict[str, Any]) -> ManifestPreset | None:
    name = params.get("preset")
    return ManifestPreset(name=name) if name else None
