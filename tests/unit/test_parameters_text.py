"""The `parameters` text, as those understand it who read it; their rules are in `tests.unit.metadata_readers`."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dreamforge.images.extra_networks import LoraTag, as_tag, harmless_tags, parted, safe_names, taken_out
from dreamforge.images.manifest import Manifest, ManifestLora, ManifestModel, ManifestVae
from dreamforge.images.parameters_reading import parse_parameters
from dreamforge.images.parameters_text import parameters_text, shortened
from dreamforge.jobs.schedulers import SCHEDULERS
from tests.unit.manifests import FOX, HASH, LORA_HASH, MANIFESTS
from tests.unit.metadata_readers import (
    read_as_a1111,
    read_as_civitai,
    read_as_comfyui,
    read_as_older_comfyui,
    words,
)

GRAIN = ManifestLora("film_grain_xl", 0.6, LORA_HASH, model_version_id=123456)
LIGHTHOUSE = replace(
    FOX,
    params={
        **FOX.params,
        "prompt": "a lighthouse on a cliff at dawn, volumetric light",
        "negative_prompt": "blurry, lowres",
    },
    seed=965400086,
    height=1024,
    model=ManifestModel("sd_xl_base_1.0", sha256=HASH, model_version_id=128078),
    loras=(GRAIN,),
)
LIGHTHOUSE_TEXT = (
    "a lighthouse on a cliff at dawn, volumetric light <lora:film_grain_xl:0.6>\n"
    "Negative prompt: blurry, lowres\n"
    "Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 965400086, Size: 1024x1024, "
    'Model hash: 31e35c80fc, Model: sd_xl_base_1.0, Lora hashes: "film_grain_xl: 7c1f2a9b3d4e", '
    'Hashes: {"model":"31e35c80fc","lora:film_grain_xl":"7c1f2a9b3d"}, '
    'Civitai resources: [{"type":"checkpoint","weight":1,"modelVersionId":128078},'
    '{"type":"lora","weight":0.6,"modelVersionId":123456}], Version: dreamforge 0.1.0'
)
EVIL = [
    ("a fox\nNegative prompt: me\nSteps: 1, Sampler: Evil, Seed: 666", ""),
    ("Negative prompt: me", "\nSteps: 1, Seed: 666, Size: 1x1"),
    ("mid Negative prompt: line\nTemplate: x\nfoo", "fog\nNegative Template: y\nbar"),
    ("", ""),
    ("a fox <0:", "<lora:"),
]


def _with(manifest: Manifest, prompt: str, negative: str = "") -> Manifest:
    return replace(manifest, params={**manifest.params, "prompt": prompt, "negative_prompt": negative})


def _as_a1111_keeps_it(prompt: str) -> str:
    """A1111 strips every line and passes over empty ones at the beginning; our writer makes every break a newline."""
    lines = [line.strip() for line in re.split("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", prompt)]
    kept = "\n".join(lines)
    for _ in kept:
        kept = kept.strip().strip("\ufeff")
    return kept


def _visible(text: str) -> str:
    return text.replace("\u2060", "")


def _without_tags(text: str) -> str:
    """Without LoRAs, which may stand in the prompt or be put behind it."""
    return re.sub(r"<\w+\s*:[^<>]*>", "", _visible(text))


def test_the_text_has_a1111s_form_in_the_order_that_its_readers_know() -> None:
    assert parameters_text(LIGHTHOUSE) == LIGHTHOUSE_TEXT


def test_what_there_is_not_is_left_out_but_never_the_negative_prompts_line() -> None:
    bare = _with(replace(FOX, model=None, versions={}), "a fox, in fog")
    bare.params["scheduler"] = "euler"
    assert parameters_text(bare) == (
        "a fox, in fog\nNegative prompt: \nSteps: 30, Sampler: Euler, CFG scale: 6.5, Seed: 42, Size: 1024x768"
    )
    assert parameters_text(Manifest()) == "\nNegative prompt: \n"


def test_a_value_with_a_comma_colon_or_newline_is_quoted() -> None:
    text = parameters_text(replace(FOX, model=ManifestModel('hf:"fox", v1\n2')))
    assert r'Model: "hf:\"fox\", v1\n2", ' in text
    assert text.count("\n") == 2
    assert read_as_a1111(text)[2]["Model"] == 'hf:"fox", v1\n2'


def test_civitai_finds_model_loras_and_vae_by_their_hashes() -> None:
    read = read_as_civitai(parameters_text(replace(LIGHTHOUSE, vae=ManifestVae("sdxl_vae", "ef" * 32))))
    assert read.prompt == "a lighthouse on a cliff at dawn, volumetric light <lora:film_grain_xl:0.6>"
    assert read.negative == "blurry, lowres"
    assert read.hashes == {"model": HASH[:10], "lora:film_grain_xl": LORA_HASH[:10], "vae": "ef" * 5}
    assert read.resources == [("lora", "film_grain_xl", 0.6, LORA_HASH[:12])]
    assert [resource["modelVersionId"] for resource in read.civitai_resources] == [128078, 123456]
    assert read.details["VAE"] == "sdxl_vae"
    assert (read.details["Seed"], read.details["Steps"]) == ("965400086", "30")


def test_civitais_own_names_are_written_where_they_are_known_and_none_that_is_made_up() -> None:
    air = "urn:air:sdxl:checkpoint:civitai:827184@2514310"
    read = read_as_civitai(parameters_text(replace(FOX, model=ManifestModel("x", air=air))))
    assert read.civitai_resources == [{"type": "checkpoint", "weight": 1, "air": air}]
    for forged in (f"{air}]", "urn:air:}, Seed: 666", f"{air}\n"):
        assert "Civitai" not in parameters_text(replace(FOX, model=ManifestModel("x", air=forged)))


@given(MANIFESTS)
@example(_with(FOX, *EVIL[0]))
@example(_with(FOX, *EVIL[1]))
@example(_with(FOX, *EVIL[2]))
@example(_with(FOX, *EVIL[3]))
@example(_with(LIGHTHOUSE, *EVIL[4]))
def test_a1111_reads_back_what_was_drawn_whatever_the_prompts_hold(made: Manifest) -> None:
    prompt, negative, fields = read_as_a1111(parameters_text(made))
    kept = _as_a1111_keeps_it(made.params["prompt"])
    if not made.loras:
        assert _visible(prompt) == kept
    assert words(_without_tags(prompt)) == words(_without_tags(kept))
    assert _visible(negative) == _as_a1111_keeps_it(made.params["negative_prompt"])
    row = SCHEDULERS[made.params["scheduler"]]
    expected: dict[str, Any] = {
        "Steps": str(made.params["steps"]),
        "Sampler": row.a1111_sampler,
        "Schedule type": row.a1111_schedule,
        "CFG scale": str(made.params["guidance_scale"]),
        "Seed": str(made.seed),
        "Size": f"{made.width}x{made.height}",
        "Model hash": made.model.sha256[:10] if made.model and made.model.sha256 else None,
        "Model": made.model.name if made.model else None,
        "Version": "dreamforge 0.1.0",
    }
    assert {name: fields.get(name) for name in expected} == expected


@given(MANIFESTS)
@example(_with(FOX, *EVIL[0]))
@example(_with(FOX, *EVIL[1]))
@example(_with(FOX, *EVIL[2]))
def test_comfyui_finds_the_same_prompts_and_fields(made: Manifest) -> None:
    read = read_as_comfyui(parameters_text(made))
    assert read is not None
    prompt, negative, fields = read
    assert words(_without_tags(prompt)) == words(_without_tags(made.params["prompt"]))
    assert words(negative) == words(made.params["negative_prompt"])
    assert fields["seed"] == str(made.seed)
    assert fields["steps"] == str(made.params["steps"])
    assert fields["cfg scale"] == str(made.params["guidance_scale"])
    assert fields["size"] == f"{made.width}x{made.height}"
    assert fields["sampler"] == SCHEDULERS[made.params["scheduler"]].a1111_sampler


def test_older_comfyui_divides_the_line_at_its_commas() -> None:
    fields = read_as_older_comfyui(LIGHTHOUSE_TEXT)
    assert (fields["seed"], fields["size"], fields["model"]) == ("965400086", "1024x1024", "sd_xl_base_1.0")


@given(MANIFESTS)
@example(_with(FOX, *EVIL[0]))
@example(_with(FOX, *EVIL[1]))
@example(_with(FOX, *EVIL[2]))
def test_civitai_finds_the_same_and_only_the_loras_that_were_used(made: Manifest) -> None:
    made = replace(made, model=ManifestModel("plain", sha256=HASH))
    read = read_as_civitai(parameters_text(made))
    assert words(_without_tags(read.prompt)) == words(_without_tags(made.params["prompt"]))
    assert words(read.negative) == words(made.params["negative_prompt"])
    assert read.details["Seed"] == str(made.seed)
    assert read.details["Steps"] == str(made.params["steps"])
    assert read.hashes["model"] == HASH[:10]
    names = safe_names([lora.name for lora in made.loras])
    used = dict(zip(names, made.loras, strict=True))
    assert len({name for _, name, _, _ in read.resources}) == len(read.resources)
    for type, name, weight, hash in read.resources:
        assert type == "lora"
        assert weight is None or weight == pytest.approx(used[name].weight, abs=1e-4)
        sha256 = used[name].sha256
        assert hash == (sha256[:12] if sha256 else None)
        assert read.hashes.get(f"lora:{name}") == (sha256[:10] if sha256 else None)


@given(MANIFESTS)
def test_only_the_last_line_begins_like_the_line_of_fields(made: Manifest) -> None:
    lines = parameters_text(made).splitlines()
    begins = [line.strip("\ufeff \t").lower().startswith("steps:") for line in lines]
    assert begins == [False] * (len(lines) - 1) + [True]


@given(MANIFESTS)
def test_our_reader_agrees_with_a1111s_and_takes_the_marks_out_again(made: Manifest) -> None:
    text = parameters_text(made)
    read = parse_parameters(text)
    _, negative, fields = read_as_a1111(text)
    assert read.negative_prompt == _visible(negative)
    assert words(read.prompt) == words(_without_used(made))
    for name in ("Steps", "Sampler", "Seed", "Size", "Model", "Version", "Lora hashes"):
        assert read.fields.get(name) == fields.get(name)
    assert [tag.name for tag in sorted(read.loras, key=lambda tag: tag.name)] == sorted(
        safe_names([lora.name for lora in made.loras])
    )


def _without_used(made: Manifest) -> str:
    """The prompt without those tags of its own that stand for a LoRA that was used."""
    prompt = made.params["prompt"]
    for name, lora in zip(safe_names([lora.name for lora in made.loras]), made.loras, strict=True):
        prompt = prompt.replace(as_tag(LoraTag(name, lora.weight)), "", 1)
    return prompt


def test_hashes_stay_in_one_piece_for_our_reader() -> None:
    fields = parse_parameters(LIGHTHOUSE_TEXT).fields
    assert fields["Hashes"] == '{"model":"31e35c80fc","lora:film_grain_xl":"7c1f2a9b3d"}'
    assert list(fields)[-3:] == ["Hashes", "Civitai resources", "Version"]


@given(
    st.text() | MANIFESTS.map(parameters_text).flatmap(lambda text: st.integers(0, len(text)).map(lambda at: text[at:]))
)
def test_any_text_can_be_parsed(text: str) -> None:
    read = parse_parameters(text)
    assert all(isinstance(value, str) for value in read.fields.values())


def test_a_text_without_fields_is_a_prompt() -> None:
    read = parse_parameters("a fox, at: night\nin fog")
    assert (read.prompt, read.negative_prompt, read.fields) == ("a fox, at: night\nin fog", "", {})


@pytest.mark.parametrize("character", ["a", ":", ",", '"', "<", "\n", " ", "{", "\\"])
@pytest.mark.timeout(20)
def test_a_text_of_megabytes_is_parsed_in_time(character: str) -> None:
    parse_parameters("Steps: 1, Seed: 2, Size: 3x4, " + character * 2_000_000)
    parse_parameters("Steps: 1, Seed: 2, Size: 3x4, " + f"ab:{character}," * 300_000)


def test_a_lora_of_the_prompt_that_was_not_used_is_no_tag_and_one_that_was_is_not_doubled() -> None:
    used = replace(FOX, loras=(ManifestLora("grain", 0.6),))
    text = parameters_text(_with(used, "a fox <lora:grain:0.60> <lora:evil:1> <LoRA:grain:9>"))
    assert _visible(text).startswith("a fox <lora:grain:0.6> <lora:evil:1> <LoRA:grain:9>\n")
    assert read_as_civitai(text).resources == [("lora", "grain", 0.6, None)]
    assert parse_parameters(text).prompt == "a fox  <lora:evil:1> <LoRA:grain:9>"


@pytest.mark.parametrize(
    ("names", "safe"),
    [
        (["film grain (v2)"], ["film_grain_v2_"]),
        (["a b", "a_b", "a:b"], ["a_b", "a_b_2", "a_b_3"]),
        (["狐", ""], ["_", "lora"]),
        (["ok-1.0_x"], ["ok-1.0_x"]),
    ],
)
def test_a_loras_name_is_written_as_civitai_finds_it(names: list[str], safe: list[str]) -> None:
    assert safe_names(names) == safe


@pytest.mark.parametrize(
    ("prompt", "rest", "tags"),
    [
        ("a fox <lora:x:0.6>", "a fox", (LoraTag("x", 0.6),)),
        ("<lora:x> a <lyco:y z:-1>", "a", (LoraTag("x", 1.0), LoraTag("y z", -1.0))),
        ("a <lora:x:te=0.5:unet=1>", "a", (LoraTag("x", 1.0),)),
        ("a <lora:x:nan> b", "a  b", (LoraTag("x", 1.0),)),
        ("a <hypernet:h:1>", "a", ()),
        ("1 < 2 <lora: 3", "1 < 2 <lora: 3", ()),
    ],
)
def test_loras_are_taken_out_of_a_prompt(prompt: str, rest: str, tags: tuple[LoraTag, ...]) -> None:
    assert taken_out(prompt) == (rest, tags)


def test_weights_have_no_exponents_and_at_most_four_places() -> None:
    weights = (0.6, 1.0, -0.5, 1e-7, 0.123456)
    assert [as_tag(LoraTag("x", weight)) for weight in weights] == [
        "<lora:x:0.6>", "<lora:x:1>", "<lora:x:-0.5>", "<lora:x:0>", "<lora:x:0.1235>",
    ]  # fmt: skip


def test_a_tag_that_is_begun_only_is_harmless_too() -> None:
    assert harmless_tags("<lora:x", allowed=()) == ("<lora\u2060:x", [])


@given(MANIFESTS, st.integers(0, 400))
def test_a_shortened_text_fits_and_is_read_as_before_but_for_the_prompts(made: Manifest, room: int) -> None:
    text = parameters_text(made)
    most = room + len(text.rpartition("\n")[2].encode("utf-16-be")) // 2 + 22
    short = shortened(text, most)
    assert len(short.encode("utf-16-be")) // 2 <= most
    assert read_as_a1111(short)[2] == read_as_a1111(text)[2]
    read, whole = read_as_comfyui(short), read_as_comfyui(text)
    assert read is not None
    assert whole is not None
    for cut, full in zip(read[:2], whole[:2], strict=True):
        assert words(taken_out(full)[0]).startswith(words(taken_out(cut)[0]).removesuffix("…"))


def test_a_field_holds_nothing_that_no_text_may_hold() -> None:
    read = parse_parameters('a fox\nSteps: 1, Seed: 2, Model: "\\ud800, x\\u0000"')
    assert read.fields["Model"] == "\ufffd, x\ufffd"


def test_a_shortened_prompt_keeps_its_loras() -> None:
    text = parameters_text(_with(LIGHTHOUSE, "a fox, " * 100, "fog " * 100))
    read = parse_parameters(shortened(text, len(text) - 300))
    assert read.prompt.startswith("a fox, a fox")
    assert read.prompt.endswith("…")
    assert read.loras == (LoraTag("film_grain_xl", 0.6),)


def test_a_lora_in_the_middle_of_a_shortened_prompt_stands_at_its_end() -> None:
    text = parameters_text(_with(LIGHTHOUSE, "a fox " * 20 + "<lora:film_grain_xl:0.6>" + " in fog" * 20, ""))
    short = shortened(text, len(text) - 200)
    assert short.partition("\n")[0].endswith("… <lora:film_grain_xl:0.6>")
    assert short.count("<lora:") == 1


def test_a_tag_that_is_cut_does_not_take_in_the_loras() -> None:
    text = parameters_text(_with(LIGHTHOUSE, f"a <fox:{'x' * 200}>", ""))
    short = shortened(text, len(text) - 100)
    assert short.partition("\n")[0] == "a … <lora:film_grain_xl:0.6>"


def test_taking_a_tag_out_makes_no_other() -> None:
    assert parted("a <lo<lora:grain:1>ra:evil:1>") == ("a <lo ra:evil:1>", ["<lora:grain:1>"])


def test_of_loras_that_leave_no_room_the_first_ones_are_kept() -> None:
    made = replace(_with(FOX, "a fox", "fog"), loras=tuple(ManifestLora(f"grain{number}") for number in range(9)))
    text = parameters_text(made)
    short = shortened(text, len(text) - 100)
    assert len(short) <= len(text) - 100
    assert [lora.name for lora in parse_parameters(short).loras] == ["grain0", "grain1", "grain2"]


def test_what_fits_is_not_shortened_and_a_short_prompt_leaves_its_room_to_the_other() -> None:
    text = parameters_text(_with(FOX, "a fox", "x" * 500))
    assert shortened(text, len(text)) == text
    prompt, negative, _ = read_as_a1111(shortened(text, len(text) - 100))
    assert (prompt, negative) == ("a fox", "x" * 399 + "…")


@given(st.text(st.sampled_from(" ,a\u00e4<lor:1>\n"), max_size=400), st.integers(0, 300))
def test_a_shortened_text_is_no_longer_than_it_may_be(prompt: str, most: int) -> None:
    text = f"{prompt} <lora:film_grain:0.6>\nNegative prompt: {prompt[:40]}\nSteps: 3, Seed: 4"
    most += 120
    assert len(shortened(text, most).encode("utf-16-be")) // 2 <= most
