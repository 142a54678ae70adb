"""What a drawn image's file says about how it was made."""

import uuid
from typing import Any

import pytest

from dreamforge.images.parameters_text import parameters_text
from dreamforge.jobs.frames import ItemDrawn
from dreamforge.store.companions import Companions, StepLora, StepModel
from dreamforge.store.step_calls import StepCall
from dreamforge.worker.encoding import Origin, manifest_of

AIR = "urn:air:sdxl:lora:civitai:123@456"
DRAWN = ItemDrawn(item_index=0, seed=7, width=1, height=1, timings={}, pixels=bytes(3))


def _model(name: str, kind: str, **metadata: Any) -> StepModel:
    return StepModel(uuid.UUID(int=1), name, "1", kind, "ab" * 32, "/models", 1, metadata)


def _origin(checkpoint: StepModel, *loras: StepModel) -> Origin:
    call = StepCall(
        step="generate", job_type="generate", user_id="ann", params={"prompt": "a fox"}, options={}, model=checkpoint,
        items=(), companions=Companions(tuple(StepLora(lora, 0.5) for lora in loras)),
    )  # fmt: skip
    return Origin(uuid.UUID(int=2), 1, call, {"torch": "2.9"}, "a CPU")


def test_civitais_names_of_model_and_loras_are_the_registrys() -> None:
    checkpoint = _model("sdxl", "sdxl", civitai={"model_version_id": 128078, "air": "urn:air:x"})
    made = manifest_of(DRAWN, _origin(checkpoint, _model("grain", "lora", civitai={"air": AIR}), _model("fog", "lora")))
    assert made.model is not None
    assert (made.model.model_version_id, made.model.air) == (128078, "urn:air:x")
    assert [(lora.model_version_id, lora.air) for lora in made.loras] == [(None, AIR), (None, None)]
    assert (
        'Civitai resources: [{"type":"checkpoint","weight":1,"modelVersionId":128078},'
        f'{{"type":"lora","weight":0.5,"air":"{AIR}"}}]'
    ) in parameters_text(made)


@pytest.mark.parametrize(
    "said", [None, 3, "x", [1], {}, {"model_version_id": "128078", "air": 3}, {"model_version_id": True, "air": None}]
)
def test_what_is_no_name_of_civitais_is_left_out(said: object) -> None:
    made = manifest_of(DRAWN, _origin(_model("sdxl", "sdxl", civitai=said), _model("grain", "lora", civitai=said)))
    for named in (made.model, *made.loras):
        assert named is not None
        assert (named.model_version_id, named.air) == (None, None)
