"""What an image says about how it was made, as its readers understand it.

``_read_as_a1111`` and ``_read_as_comfyui`` say what those programs do, not what ours does:
AUTOMATIC1111/stable-diffusion-webui ``modules/infotext_utils.py`` (``re_param``, ``parse_generation_parameters``,
``unquote``) and Comfy-Org/ComfyUI_frontend ``src/scripts/pnginfo.ts`` (``importA1111``).
"""

import dataclasses
import io
import json
import re
import struct
import zlib
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dreamforge.images.encode import encode_png
from dreamforge.images.metadata import GenerationParameters, ReadMetadata, parse_parameters, read_png
from dreamforge.jobs.schedulers import SCHEDULERS

HASH = "31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b"
FOX = GenerationParameters(
    prompt="a fox, in fog",
    negative_prompt="blurry",
    seed=42,
    scheduler="dpmpp_2m_karras",
    steps=30,
    guidance_scale=6.5,
    width=1024,
    height=768,
    model_name="sd_xl_base_1.0",
    checkpoint_hash=HASH,
    job_id="0192f0c1-0000-7000-8000-000000000000",
    item_index=3,
    version="0.1.0",
)

_A1111_FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def _read_as_a1111(text: str) -> tuple[str, str, dict[str, str]]:
    *lines, last = text.strip().split("\n")
    if len(_A1111_FIELD.findall(last)) < 3:
        lines, last = [*lines, last], ""
    parts: dict[bool, list[str]] = {False: [], True: []}
    in_negative = False
    for line in map(str.strip, lines):
        begins = line.startswith("Negative prompt:")
        in_negative = in_negative or begins
        rest = line[16:].strip() if begins else line
        if parts[in_negative] or rest:
            parts[in_negative].append(rest)
    fields: dict[str, str] = {}
    for name, value in _A1111_FIELD.findall(last):
        fields[name] = json.loads(value) if value[:1] == '"' == value[-1:] else value
    return "\n".join(parts[False]), "\n".join(parts[True]), fields


def _read_as_comfyui(text: str) -> tuple[str, str] | None:
    steps = text.rfind("\nSteps:")
    negative = text.rfind("\nNegative prompt:", 0, steps)
    if steps < 0 or negative < 0:
        return None
    return text[:negative].strip(), text[negative + 18 : steps].strip()


def _as_a1111_keeps_it(prompt: str) -> str:
    """A1111 strips every line and passes over empty ones at the beginning; our writer makes every break a newline."""
    lines = [line.strip() for line in re.split("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", prompt)]
    return "\n".join(lines).strip().lstrip("\n")


def _visible(text: str) -> str:
    return text.replace("\u2060", "")


_characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0\u2060")
_forged = st.sampled_from(
    [
        *("\n", "\r", "\u2028", "\x85", " ", "\ufeff", '"', "\\", ",", ":"),
        *("Negative prompt:", "negative prompt: x", "Steps: 1, Sampler: Evil,", "Seed: 666, Size: 1x1, CFG scale: 1"),
    ]
)
PROMPTS = st.text(_characters, max_size=40) | st.lists(_forged | st.text(_characters, max_size=6), max_size=8).map(
    "".join
)
PARAMETERS = st.builds(
    GenerationParameters,
    prompt=PROMPTS,
    negative_prompt=PROMPTS,
    seed=st.integers(0, 2**32 - 1),
    scheduler=st.sampled_from(sorted(SCHEDULERS)),
    steps=st.integers(1, 150),
    guidance_scale=st.floats(0, 30).map(lambda value: round(value, 3)),
    width=st.integers(64, 4096),
    height=st.integers(64, 4096),
    model_name=st.text("abcXYZ019._- ,:", max_size=20).map(str.strip),
    checkpoint_hash=st.none() | st.just(HASH),
    job_id=st.uuids().map(str),
    item_index=st.integers(0, 1000),
    version=st.just("0.1.0"),
)


def test_the_parameters_text_has_a1111s_form() -> None:
    assert FOX.parameters_text() == (
        "a fox, in fog\n"
        "Negative prompt: blurry\n"
        "Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 42, Size: 1024x768, "
        "Model hash: 31e35c80fc, Model: sd_xl_base_1.0, Version: dreamforge 0.1.0"
    )


def test_what_there_is_not_is_left_out_but_never_the_negative_prompts_line() -> None:
    bare = dataclasses.replace(FOX, negative_prompt="", scheduler="euler", checkpoint_hash=None, model_name="")
    assert bare.parameters_text() == (
        "a fox, in fog\n"
        "Negative prompt: \n"
        "Steps: 30, Sampler: Euler, CFG scale: 6.5, Seed: 42, Size: 1024x768, Version: dreamforge 0.1.0"
    )


def test_a_value_with_a_comma_colon_or_newline_is_quoted() -> None:
    text = dataclasses.replace(FOX, model_name='hf:"fox", v1\n2').parameters_text()
    assert r'Model: "hf:\"fox\", v1\n2", ' in text
    assert text.count("\n") == 2
    assert _read_as_a1111(text)[2]["Model"] == 'hf:"fox", v1\n2'


@given(PARAMETERS)
@example(dataclasses.replace(FOX, prompt="a fox\nNegative prompt: me\nSteps: 1, Sampler: Evil, Seed: 666"))
@example(dataclasses.replace(FOX, prompt="Negative prompt: me", negative_prompt="\nSteps: 1, Seed: 666, Size: 1x1"))
@example(dataclasses.replace(FOX, prompt="", negative_prompt=""))
def test_a1111_reads_back_what_was_drawn_whatever_the_prompts_hold(given_: GenerationParameters) -> None:
    prompt, negative, fields = _read_as_a1111(given_.parameters_text())
    assert _visible(prompt) == _as_a1111_keeps_it(given_.prompt)
    assert _visible(negative) == _as_a1111_keeps_it(given_.negative_prompt)
    row = SCHEDULERS[given_.scheduler]
    expected = {
        "Steps": str(given_.steps),
        "Sampler": row.a1111_sampler,
        "Schedule type": row.a1111_schedule,
        "CFG scale": str(given_.guidance_scale),
        "Seed": str(given_.seed),
        "Size": f"{given_.width}x{given_.height}",
        "Model hash": HASH[:10] if given_.checkpoint_hash else None,
        "Model": given_.model_name or None,
        "Version": "dreamforge 0.1.0",
    }
    assert fields == {name: value for name, value in expected.items() if value is not None}


@given(PARAMETERS)
def test_comfyui_finds_the_same_prompts(given_: GenerationParameters) -> None:
    read = _read_as_comfyui(given_.parameters_text())
    assert read is not None
    assert _visible(read[0]) == _visible(_harmless_lines(given_.prompt))
    assert _visible(read[1]) == _visible(_harmless_lines(given_.negative_prompt))


def _harmless_lines(prompt: str) -> str:
    return re.sub("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]", "\n", prompt).strip()


@given(PARAMETERS)
def test_only_the_last_line_begins_like_the_line_of_fields(given_: GenerationParameters) -> None:
    lines = given_.parameters_text().splitlines()
    assert [line.strip("\ufeff \t").lower().startswith("steps:") for line in lines] == [False] * (len(lines) - 1) + [
        True
    ]


@given(PARAMETERS)
def test_our_reader_agrees_with_a1111s_and_takes_the_marks_out_again(given_: GenerationParameters) -> None:
    text = given_.parameters_text()
    read = parse_parameters(text)
    prompt, negative, fields = _read_as_a1111(text)
    assert read.fields == fields
    assert (read.prompt, read.negative_prompt) == (_visible(prompt), _visible(negative))


@given(st.text())
def test_any_text_can_be_parsed(text: str) -> None:
    read = parse_parameters(text)
    assert read.fields == {} or len(read.fields) >= 1


def test_a_text_without_fields_is_a_prompt() -> None:
    read = parse_parameters("a fox, at: night\nin fog")
    assert (read.prompt, read.negative_prompt, read.fields) == ("a fox, at: night\nin fog", "", {})


@given(PARAMETERS)
def test_our_own_chunk_holds_everything_as_it_was(given_: GenerationParameters) -> None:
    content = json.loads(given_.dreamforge_json())
    expected = dataclasses.asdict(given_)
    expected["model"] = expected.pop("model_name")
    expected["memory_savings"] = list(given_.memory_savings)
    assert content == expected


def test_our_own_chunk_has_these_keys() -> None:
    assert set(json.loads(FOX.dreamforge_json())) == {
        "prompt", "negative_prompt", "seed", "scheduler", "steps", "guidance_scale", "width", "height",
        "checkpoint_hash", "model", "job_id", "item_index", "version",
        "memory_savings",
    }  # fmt: skip


def _png(parameters: GenerationParameters = FOX) -> bytes:
    text = {"parameters": parameters.parameters_text(), "dreamforge": parameters.dreamforge_json()}
    return encode_png(bytes(2 * 2 * 3), width=2, height=2, text=text)


@given(PARAMETERS)
def test_a_file_gives_back_both_texts(given_: GenerationParameters) -> None:
    read = read_png(_png(given_))
    assert read.parameters == given_.parameters_text()
    assert read.dreamforge == json.loads(given_.dreamforge_json())


def test_a_file_without_texts_says_so() -> None:
    assert read_png(encode_png(bytes(3), width=1, height=1, text={})) == ReadMetadata(parameters=None, dreamforge=None)


def test_texts_behind_the_pixels_are_found() -> None:
    plain = encode_png(bytes(3), width=1, height=1, text={})
    end = plain.rindex(b"IEND") - 4
    assert read_png(plain[:end] + _chunk(b"tEXt", b"parameters\0a fox") + plain[end:]).parameters == "a fox"


@pytest.mark.parametrize("own", ["[1]", "3", '"x"', "null"])
def test_a_chunk_of_ours_that_is_no_object_is_passed_over(own: str) -> None:
    assert read_png(encode_png(bytes(3), width=1, height=1, text={"dreamforge": own})).dreamforge is None


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack("!I", len(content)) + kind + content + struct.pack("!I", zlib.crc32(kind + content))


def _bomb(width: int, height: int) -> bytes:
    header = struct.pack("!IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8193, 8193), (10_000, 9_000), (13_000, 13_000), (60_000, 60_000)])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", decode)
    with pytest.raises(ValueError, match=r"pixels are too many|not a readable PNG"):
        read_png(_bomb(*size))


def test_another_format_is_refused() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (2, 2)).save(stream, "JPEG")
    with pytest.raises(ValueError, match="not a readable PNG"):
        read_png(stream.getvalue())


@settings(max_examples=300)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=6), st.booleans())
def test_a_damaged_file_is_read_or_refused(at: int, patch: bytes, cut: bool) -> None:
    png = _png()
    at %= len(png)
    damaged = png[:at] if cut else png[:at] + patch + png[at + len(patch) :]
    try:
        read = read_png(damaged)
    except ValueError:
        return
    assert isinstance(read, ReadMetadata)
