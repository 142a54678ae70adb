"""From pixels to the bytes of a file that says how it was made."""

import uuid
from dataclasses import dataclass

from dreamforge import __version__
from dreamforge.images.encode import encode_png
from dreamforge.images.metadata import GenerationParameters
from dreamforge.jobs.frames import ItemDrawn
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
    """The image as a PNG file."""
    parameters = parameters_of(drawn, origin)
    data = encode_png(
        drawn.pixels,
        width=drawn.width,
        height=drawn.height,
        text={"parameters": parameters.parameters_text(), "dreamforge": parameters.dreamforge_json()},
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
    )


def parameters_of(drawn: ItemDrawn, origin: Origin) -> GenerationParameters:
    """What the file says about how it was made."""
    params, model = origin.call.params, origin.call.model
    return GenerationParameters(
        prompt=params["prompt"],
        negative_prompt=params["negative_prompt"],
        seed=drawn.seed,
        scheduler=params["scheduler"],
        steps=params["steps"],
        guidance_scale=params["guidance_scale"],
        width=drawn.width,
        height=drawn.height,
        model_name=model.name if model else "",
        checkpoint_hash=model.checkpoint_hash if model else None,
        job_id=str(origin.job_id),
        item_index=drawn.item_index,
        memory_savings=savings(origin.call.rung),
        version=__version__,
    )
