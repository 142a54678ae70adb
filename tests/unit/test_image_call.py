"""From what a file says to the job that draws it again."""

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamforge.api.schemas import Model
from dreamforge.cli.image_call import ImageCall, call_of
from dreamforge.cli.image_view import rows_of
from dreamforge.images.manifest import Manifest, ManifestLora, ManifestModel, ManifestPreset, ManifestVae
from dreamforge.images.parameters_text import parameters_text
from dreamforge.images.reading import ReadMetadata
from dreamforge.jobs.schedulers import SCHEDULERS
from dreamforge.models.descriptor import SizeRange, sdxl_schema
from tests.unit.manifests import FOX, HASH, LORA_HASH, MANIFESTS

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
OTHER_BYTES = a_model(sha256="ee" * 32)
NEWER = a_model(version="2", created_at=_NOW + timedelta(days=1))
GRAIN = a_model("grain", sha256=LORA_HASH, kind="lora", capabilities=[])
SMOOTH = a_model("smooth", sha256="5f" * 32, kind="vae", capabilities=[])


def replace_model(model: Model, **changes: Any) -> Model:
    return model.model_copy(update=changes)


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


def test_what_is_not_here_and_comes_from_civitai_can_be_had_from_there() -> None:
    model = ManifestModel("gone", version="3", sha256="aa" * 32, air="urn:air:sdxl:checkpoint:civitai:277058@1920523")
    lora = ManifestLora("grain", sha256=LORA_HASH, version="1", air="urn:air:sdxl:lora:civitai:444@555")
    read = _read(replace(FOX, model=model, loras=(lora,)))
    get = "Get it: dreamforge model download"
    assert _call(read).notes == (
        f"gone@3 is not here. {get} civitai:277058@1920523",
        f"Without the LoRA grain@1, which is not here. {get} civitai:444@555",
    )
    switched_off = a_model("gone", version="3", enabled=False)
    assert _call(read, switched_off, GRAIN).notes == ()


@pytest.mark.parametrize("air", [None, "urn:air:sdxl:checkpoint:huggingface:org/repo", "hf:org/repo", "; rm -rf ~"])
def test_what_a_file_calls_an_air_is_repeated_only_where_it_is_one(air: str | None) -> None:
    read = replace(FOX, model=ManifestModel("gone", version="3", air=air))
    assert _call(_read(read)).notes == ()
    assert dict(rows_of(_read(read)))["model"] == "gone@3"


def test_where_a_model_can_be_had_is_shown() -> None:
    model = ManifestModel("xl", sha256="aa" * 32, air="urn:air:sdxl:checkpoint:civitai:277058@1920523")
    lora = ManifestLora("grain", 0.6, air="urn:air:sdxl:lora:civitai:444@555")
    shown = dict(rows_of(_read(replace(FOX, model=model, loras=(lora,)))))
    assert shown["model"] == "xl, sha256 aaaaaaaaaaaa…, civitai:277058@1920523"
    assert shown["LoRA"] == "grain, weight 0.6, civitai:444@555"


@pytest.mark.parametrize(
    ("read", "models", "wanted", "model", "note"),
    [
        (_of_model(), [SDXL], None, "sdxl@1", None),
        (_of_model(version=None), [SDXL], None, "sdxl@1", None),
        (_of_model(sha256=None), [SDXL], None, "sdxl@1", None),
        (_of_model(sha256="ee" * 32), [SDXL], None, "sdxl@1", "sdxl@1 is not the model that the file was made with"),
        (_of_model("renamed"), [SDXL], None, "sdxl@1", "renamed@1 is called sdxl@1 here"),
        (_of_model(version="2"), [SDXL], None, "sdxl@1", "sdxl@2 is called sdxl@1 here"),
        (_of_model(), [SDXL, DEFAULT], "other", "other", "other is not the model that the file was made with"),
        (_of_model(), [SDXL, DEFAULT], "sdxl", "sdxl", None),
        (_of_model(), [OTHER_BYTES, NEWER], "sdxl", "sdxl", None),
        (_of_model(), [OTHER_BYTES, NEWER], None, "sdxl@2", "sdxl@1 is called sdxl@2 here"),
        (_of_model(version=None), [OTHER_BYTES, NEWER], None, "sdxl@2", None),
        (_of_model(version=None, sha256=None), [SDXL, NEWER], None, "sdxl@2", None),
        (_of_model(version=None, sha256=None), [SDXL, replace_model(NEWER, installed=False)], None, "sdxl@1", None),
        (_of_model("renamed"), [replace_model(NEWER, enabled=False), SDXL], None, "sdxl@1", "is called sdxl@1 here"),
        (_of_model("renamed"), [replace_model(NEWER, kind="lora"), SDXL], None, "sdxl@1", "is called sdxl@1 here"),
        (_of_model(), [replace_model(SDXL, installed=False)], None, "sdxl@1", None),
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
    assert (call.prompt, call.model) == ("a fox", "sdxl@1")
    assert call.params == {
        "negative_prompt": "fog",
        "steps": 20,
        "guidance_scale": 7,
        "seed": 5,
        "width": 832,
        "height": 1216,
        "scheduler": "dpmpp_2m_karras",
    }
    assert call.notes == ("Without the LoRA grain, which is not here.",)


@pytest.mark.parametrize(
    ("others", "loras", "notes"),
    [
        ([GRAIN], [{"id": "grain@1", "weight": 0.6}], ()),
        ([replace_model(GRAIN, version="2", installed=False), GRAIN], [{"id": "grain@1", "weight": 0.6}], ()),
        ([replace_model(GRAIN, installed=False)], None, ("Without the LoRA grain, which is not here.",)),
        ([replace_model(GRAIN, enabled=False)], None, ("Without the LoRA grain, which is not here.",)),
        ([replace_model(GRAIN, kind="vae")], None, ("Without the LoRA grain, which is not here.",)),
    ],
)  # fmt: skip
def test_a_foreign_texts_lora_is_taken_where_one_of_its_name_is_here(
    others: list[Model], loras: list[dict[str, Any]] | None, notes: tuple[str, ...]
) -> None:
    call = _call(_read(parameters=FOREIGN), SDXL, *others)
    assert (call.params.get("loras"), call.notes) == (loras, notes)


@pytest.mark.parametrize(
    ("hashes", "lora", "notes"),
    [
        (f'{{"lora:grain":"{LORA_HASH[:10]}"}}', "film@1", ("grain is called film@1 here.",)),
        ('{"lora:grain":3}', None, ("Without the LoRA grain, which is not here.",)),
        ("[" * 5000, None, ("Without the LoRA grain, which is not here.",)),
    ],
    ids=["hash", "number", "nested"],
)
def test_a_foreign_texts_lora_is_found_by_its_short_hash_too(hashes: str, lora: str | None, notes: Any) -> None:
    call = _call(_read(parameters=f"{FOREIGN}, Hashes: {hashes}"), SDXL, replace_model(GRAIN, name="film"))
    assert call.params.get("loras") == ([{"id": lora, "weight": 0.6}] if lora else None)
    assert call.notes == notes


def test_a_foreign_texts_lora_is_taken_once() -> None:
    text = FOREIGN.replace("<lora:grain:0.6>", "<lora:grain:0.6> <lora:grain:0.9> <lora:grain@1:1>")
    call = _call(_read(parameters=text), SDXL, GRAIN)
    assert call.params["loras"] == [{"id": "grain@1", "weight": 0.6}]
    assert call.notes == (
        "The LoRA grain is named more than once: the first weight counts.",
        "The LoRA grain@1 is named more than once: the first weight counts.",
    )


def _with_companions(*, grain: str | None = LORA_HASH, smooth: str | None = "5f" * 32, **params: Any) -> ReadMetadata:
    made = replace(
        FOX,
        params=FOX.params | {"loras": [{"id": "grain@1", "weight": 0.6}], "vae": "smooth@1"} | params,
        loras=(ManifestLora("grain", 0.6, grain, version="1"),),
        vae=ManifestVae("smooth", smooth, version="1"),
        model=ManifestModel("sdxl", version="1", sha256=HASH),
    )
    return _read(made)


@pytest.mark.parametrize(
    ("read", "others", "lora", "vae", "notes"),
    [
        (_with_companions(), [GRAIN, SMOOTH], "grain@1", "smooth@1", ()),
        (_with_companions(grain=None, smooth=None), [GRAIN, SMOOTH], "grain@1", "smooth@1", ()),
        (_with_companions(grain="ee" * 32, smooth="ee" * 32), [GRAIN, SMOOTH], "grain@1", "smooth@1",
         ("grain@1 is not the LoRA that the file was made with: its hash is another. Images may differ.",
          "smooth@1 is not the VAE that the file was made with: its hash is another. Images may differ.")),
        (_with_companions(), [replace_model(GRAIN, name="film"), replace_model(SMOOTH, name="clear")],
         "film@1", "clear@1", ("grain@1 is called film@1 here.", "smooth@1 is called clear@1 here.")),
        (_with_companions(), [replace_model(GRAIN, installed=False), replace_model(SMOOTH, enabled=False)], None, None,
         ("Without the LoRA grain@1, which is not here.", "Without the VAE smooth@1, which is not here.")),
        (_with_companions(), [replace_model(GRAIN, kind="vae"), replace_model(SMOOTH, kind="lora")], None, None,
         ("Without the LoRA grain@1, which is not here.", "Without the VAE smooth@1, which is not here.")),
        (_with_companions(loras=None, vae=None), [GRAIN, SMOOTH], "grain@1", "smooth@1", ()),
    ],
)  # fmt: skip
def test_loras_and_vae_are_the_named_ones_or_the_same_by_another_name_or_left_out(
    read: ReadMetadata, others: list[Model], lora: str | None, vae: str | None, notes: tuple[str, ...]
) -> None:
    call = _call(read, SDXL, *others)
    assert call.params.get("loras") == ([{"id": lora, "weight": 0.6}] if lora else None)
    assert call.params.get("vae") == vae
    assert call.notes == notes


@pytest.mark.parametrize("given", ["grain", {"id": "grain"}, [3], [{"weight": 1}], [{"id": 3}]])
def test_loras_that_are_none_are_left_out_as_the_schema_says(given: object) -> None:
    call = _call(_with_companions(loras=given, vae=["smooth"]), SDXL, GRAIN, SMOOTH)
    assert not {"loras", "vae"} & call.params.keys()
    assert len([note for note in call.notes if note.startswith(("loras is left out", "vae is left out"))]) == 2


def test_what_a_job_does_not_ask_for_and_what_moves_pixels_is_told() -> None:
    made = replace(FOX, model=None, batch_size=4, memory_savings=("vae_tiling", "vae_slicing"), rung=2)
    assert _call(_read(made)).notes == (
        "It was drawn in a batch of 4: in another, pixels may differ by rounding.",
        "It was drawn with less memory (vae tiling, vae slicing): without that, pixels may differ by rounding.",
    )


def test_what_the_preset_asks_for_again_is_not_told() -> None:
    made = replace(
        FOX,
        params=FOX.params | {"preset": "low_vram"}, preset=ManifestPreset("low_vram", 1), model=None, batch_size=1,
        memory_savings=("vae_tiling", "vae_slicing", "model_offload"), rung=3,
    )  # fmt: skip
    assert _call(_read(made)).notes == ()


def test_the_schema_is_that_of_the_version_that_is_taken() -> None:
    older = replace_model(SDXL, parameters_schema=sdxl_schema(
        size=SizeRange(least=64, most=128, default=64), default_steps=3
    ))  # fmt: skip
    call = _call(_of_model(version=None), older, NEWER, model="sdxl")
    assert (call.params["width"], call.notes) == (1024, ())


@pytest.mark.parametrize(
    ("text", "model", "note"),
    [
        ("Model hash: 31e35c80fc, Model: sd_xl_base", "sdxl@1", "sd_xl_base is called sdxl@1 here."),
        ("Model hash: 31e35c80fc", "sdxl@1", None),
        ("Model hash: 0000000000, Model: sdxl", "sdxl@1", "sdxl@1 is not the model that the file was made with"),
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


@pytest.mark.parametrize("value", ["nan", "inf", "1" * 400, "1" * 5000, "x", ""])
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


def test_a_name_means_the_checkpoint_where_a_lora_has_it_too() -> None:
    lora = a_model("sdxl", version="2", kind="lora", capabilities=[], parameters_schema={}, sha256="ee" * 32)
    call = _call(_of_model(), SDXL, lora, model="sdxl")
    assert (call.params["seed"], call.notes) == (42, ())
