"""From what a file says to the job that draws it again."""

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamforge.api.schemas import Model
from dreamforge.cli.image_call import ImageCall, call_of
from dreamforge.images.manifest import Manifest, ManifestModel
from dreamforge.images.parameters_text import parameters_text
from dreamforge.images.reading import ReadMetadata
from dreamforge.jobs.schedulers import SCHEDULERS
from dreamforge.models.descriptor import SizeRange, sdxl_schema
from tests.unit.manifests import FOX, HASH, MANIFESTS

_NOW = datetime(2026, 11, 25, tzinfo=UTC)
_SCHEMA = sdxl_schema(size=SizeRange(least=64, most=2048, default=1024), default_steps=30)
FOREIGN = (
    "a fox <lora:grain:0.6>\nNegative prompt: fog\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, "
    "Seed: 5, Size: 832x1216, Model hash: 31e35c80fc, Model: sdxl, Version: v1.10.1"
)


def a_model(name: str = "sdxl", *, sha256: str | None = HASH, version: str = "1", **changes: Any) -> Model:
    values: dict[str, Any] = {
        "id": uuid.uuid4(), "name": name, "kind": "sdxl", "version": version, "installed": True, "enabled": True,
        "default": False, "checkpoint_hash": sha256, "source_uri": "", "capabilities": [], "size_bytes": 0, "nodes": [],
        "parameters_schema": _SCHEMA, "created_at": _NOW, "updated_at": _NOW, "metadata": {},
    }  # fmt: skip
    return Model(**(values | changes))


SDXL = a_model()
DEFAULT = a_model("other", sha256="ff" * 32, default=True)


def _read(manifest: Manifest | None = None, parameters: str | None = None) -> ReadMetadata:
    return ReadMetadata("png", 64, 64, parameters=parameters, manifest=manifest)


def _call(read: ReadMetadata, *models: Model, model: str | None = None) -> ImageCall:
    call = call_of(read, models or (SDXL, DEFAULT), model=model)
    assert call is not None
    return call


def _of_model(name: str = "sdxl", version: str | None = "1", sha256: str | None = HASH) -> ReadMetadata:
    return _read(replace(FOX, model=ManifestModel(name, version=version, sha256=sha256)))


def test_a_manifest_gives_its_parameters_the_image_s_seed_and_its_model() -> None:
    call = _call(_of_model())
    assert call == ImageCall(
        prompt="a fox, in fog",
        params={**{name: value for name, value in FOX.params.items() if name != "prompt"}, "seed": 42},
        model="sdxl@1",
    )


def test_the_manifest_comes_before_the_text() -> None:
    assert _call(replace(_of_model(), parameters=FOREIGN)).prompt == "a fox, in fog"


def test_a_manifest_without_a_prompt_leaves_it_to_the_text() -> None:
    assert _call(_read(Manifest(), FOREIGN)).prompt == "a fox"
    assert call_of(_read(Manifest()), [SDXL]) is None
    assert call_of(_read(), [SDXL]) is None


def test_what_needed_less_memory_may_do_so_again() -> None:
    assert _call(_read(replace(FOX, rung=2))).options == {"oom_policy": "degrade"}
    assert _call(_read(FOX)).options == {}


def test_parameters_that_the_model_does_not_take_are_left_out_and_named() -> None:
    params = {**FOX.params, "colour": "red", "steps": 999}
    call = _call(_read(replace(FOX, params=params, model=ManifestModel("sdxl", version="1", sha256=HASH))))
    assert not {"colour", "steps"} & call.params.keys()
    assert call.notes == (
        "steps is left out: must be at most 150.",
        "colour is left out: the model does not know it.",
    )


def test_where_nothing_is_known_of_the_model_the_service_judges() -> None:
    call = _call(_read(replace(FOX, params={**FOX.params, "colour": "red"}, model=ManifestModel("gone", version="3"))))
    assert (call.model, call.params["colour"], call.notes) == ("gone@3", "red", ())


@pytest.mark.parametrize(
    ("read", "models", "wanted", "model", "note"),
    [
        (_of_model(), [SDXL], None, "sdxl@1", None),
        (_of_model(version=None), [SDXL], None, "sdxl", None),
        (_of_model(sha256=None), [SDXL], None, "sdxl@1", None),
        (_of_model(sha256="ee" * 32), [SDXL], None, "sdxl@1", "sdxl@1 is not the model that the file was made with"),
        (_of_model("renamed"), [SDXL], None, "sdxl@1", "renamed@1 is called sdxl@1 here"),
        (_of_model(version="2"), [SDXL], None, "sdxl@1", "sdxl@2 is called sdxl@1 here"),
        (_of_model(), [SDXL, DEFAULT], "other", "other", "other is not the model that the file was made with"),
        (_of_model(), [SDXL, DEFAULT], "sdxl", "sdxl", None),
        (_of_model(), [a_model(sha256="ee" * 32), a_model(version="2")], "sdxl", "sdxl", None),
        (_of_model(), [SDXL], "nobody", "nobody", None),
        (_read(replace(FOX, model=None)), [SDXL], None, None, None),
    ],
)  # fmt: skip
def test_the_model_is_the_named_one_or_the_same_by_another_name(
    read: ReadMetadata, models: list[Model], wanted: str | None, model: str | None, note: str | None
) -> None:
    call = _call(read, *models, model=wanted)
    assert call.model == model
    assert (len(call.notes) == 1 and note in call.notes[0]) if note else call.notes == ()


def test_a_foreign_text_is_understood_as_far_as_it_goes() -> None:
    call = _call(_read(parameters=FOREIGN))
    assert (call.prompt, call.model) == ("a fox", "sdxl")
    assert call.params == {
        "negative_prompt": "fog",
        "steps": 20,
        "guidance_scale": 7,
        "seed": 5,
        "width": 832,
        "height": 1216,
        "scheduler": "dpmpp_2m_karras",
    }
    assert call.notes == ("loras is left out: the model does not know it.",)


@pytest.mark.parametrize(
    ("text", "model", "note"),
    [
        ("Model hash: 31e35c80fc, Model: sd_xl_base", "sdxl@1", "sd_xl_base is called sdxl@1 here."),
        ("Model hash: 31e35c80fc", "sdxl@1", None),
        ("Model hash: 0000000000, Model: sdxl", "sdxl", "sdxl is not the model that the file was made with"),
        ("Model hash: 0000000000, Model: gone", None, "The model gone is not here: the default one is used."),
        ("Model hash: 0000000000", None, "The model 0000000000 is not here: the default one is used."),
        ("CFG scale: 5", None, "The file names no model: the default one is used."),
        ("Model hash: 3", None, "The model 3 is not here"),
    ],
)
def test_a_foreign_texts_model_is_found_by_name_or_short_hash(text: str, model: str | None, note: str | None) -> None:
    call = _call(_read(parameters=f"a fox\nSteps: 20, Seed: 5, {text}"))
    assert call.model == model
    assert (len(call.notes) == 1 and note in call.notes[0]) if note else call.notes == ()


@pytest.mark.parametrize(
    ("fields", "scheduler"),
    [
        *((f"Sampler: {row.a1111_sampler}, Schedule type: {row.a1111_schedule or 'Automatic'}", name)
          for name, row in SCHEDULERS.items() if name != "dpmpp_2m"),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "dpmpp_2m_karras"),
        ("Sampler: DPM++ 2M, Schedule type: Uniform", "dpmpp_2m"),
        ("Sampler: DPM++ 2M", "dpmpp_2m"),
        ("Sampler: DPM++ 2M Karras", "dpmpp_2m_karras"),
        ("Sampler: euler A", "euler_a"),
        ("Sampler: DPM++ 3M SDE, Schedule type: Exponential", None),
        ("CFG scale: 3", None),
    ],
)  # fmt: skip
def test_a1111s_samplers_are_mapped_back(fields: str, scheduler: str | None) -> None:
    call = _call(_read(parameters=f"a fox\nSteps: 20, Seed: 5, {fields}"))
    assert call.params.get("scheduler") == scheduler
    said = [note for note in call.notes if "scheduler" in note]
    assert len(said) == (1 if "Sampler" in fields and scheduler is None else 0)


def test_what_a_foreign_text_asks_for_that_is_not_here_is_told() -> None:
    text = "a fox\nSteps: 20, Seed: -1, CFG scale: 99, Size: 70x64, Clip skip: 2, Hires upscale: 2, Sampler: Euler"
    call = _call(_read(parameters=text))
    assert call.params == {"negative_prompt": "", "steps": 20, "height": 64, "scheduler": "euler"}
    assert call.notes[1:] == (
        "Not repeated: Clip skip, Hires upscale.",
        "guidance_scale is left out: must be at most 30.0.",
        "seed is left out: must be at least 0.",
        "width is left out: must be a multiple of 8.",
    )


def test_a_prompt_alone_is_enough() -> None:
    call = _call(_read(parameters="a fox in fog"))
    assert (call.prompt, call.params) == ("a fox in fog", {"negative_prompt": ""})


@pytest.mark.parametrize("value", ["nan", "inf", "1" * 5000, "x", ""])
def test_a_number_that_is_none_is_left_to_the_model(value: str) -> None:
    call = _call(_read(parameters=f"a fox\nSteps: 20, Seed: {value}, CFG scale: {value}, Size: 64x64"))
    json.dumps(call.params, allow_nan=False)
    assert not {"seed", "guidance_scale"} & call.params.keys()


@given(MANIFESTS)
def test_our_own_text_gives_the_same_call_as_the_manifest_but_for_blanks(made: Manifest) -> None:
    made = replace(made, model=ManifestModel("sdxl", sha256=HASH), loras=(), width=640, height=640)
    by_text = _call(_read(parameters=parameters_text(made)))
    by_manifest = _call(_read(made))
    for name in ("scheduler", "steps", "guidance_scale", "seed"):
        assert by_text.params[name] == by_manifest.params[name]


@given(st.text())
def test_any_text_gives_a_call(text: str) -> None:
    assert isinstance(call_of(_read(parameters=text), [SDXL, DEFAULT]), ImageCall)
