"""What a prompt is to the UNet: diffusers' own embeddings while it is short and plain, weights and chunks beyond."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LONGEST = 8192
WEIGHT = 1.1
Encode = Callable[..., "dict[str, torch.Tensor]"]


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> Any:
    from diffusers import StableDiffusionXLPipeline  # noqa: PLC0415 - torch, only where it is needed

    return StableDiffusionXLPipeline.from_pretrained(str(tiny_model), local_files_only=True, add_watermarker=False)


@pytest.fixture(scope="module")
def encoded(pipeline: Any) -> Encode:
    """Encodes with the tiny model; the negative prompt is empty unless given."""
    from dreamforge.runners.prompts import encode  # noqa: PLC0415 - as above

    def encoded(prompt: str, negative_prompt: str = "", *, is_guided: bool = True) -> "dict[str, torch.Tensor]":
        return encode(pipeline, prompt=prompt, negative_prompt=negative_prompt, is_guided=is_guided, device="cpu")

    return encoded


def _read(prompt: str) -> list[tuple[str, float]]:
    from dreamforge.runners.prompts import weighted  # noqa: PLC0415 - as above

    return [(fragment.text, round(fragment.weight, 6)) for fragment in weighted(prompt)]


def _diffusers(pipeline: Any, prompt: str, negative_prompt: str) -> "list[torch.Tensor]":
    return list(pipeline.encode_prompt(prompt=prompt, negative_prompt=negative_prompt, device="cpu"))


PLAIN = {
    "words": "a lighthouse at dawn",
    "empty": "",
    "white space": " \t\n\u2003",
    "as long as it may be": "a" * 75,
    "with sentences": "One. Two, three; four: five.",
    "commas without a space": "red,green,blue",
    "compel's plus": "C++ and c+ +",
    "compel's minus": "rock-n-roll - a--",
    "compel's quotes": '"quoted" and "open',
    "compel's operators": "x.and() y.blend(",
    "compel's numbers": "model 1.5 v2.0",
    "an open bracket": "a (small dog",
    "a closed bracket": "a) small] dog",
    "brackets crossed": "a ([) b",
    "nothing in brackets": "and() [] ( )",
    "smileys": ":) :] ;-) :( :[",
    "a number in no bracket": "at 12:30) sharp",
    "backslash": "C:\\temp\\x",
    "a LoRA as A1111 writes it": "<lora:name:0.6>",
    "keywords of A1111": "a BREAK b AND c",
    "special tokens": "<|startoftext|>x<|endoftext|>y<|endoftext|>",
    "emoji": "👩‍👩‍👧‍👦",
    "not normalised": "e\u0301\u0327",
    "exclamation marks, which pad": "!! stop !!",
}


@pytest.mark.parametrize("prompt", PLAIN.values(), ids=PLAIN.keys())
def test_a_short_prompt_without_weights_is_what_diffusers_makes_of_it(
    pipeline: Any, encoded: Encode, prompt: str
) -> None:
    for given_, negative in ((prompt, "blurry"), ("a fox", prompt)):
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        found = encoded(given_, negative)
        expected = dict(zip(names, _diffusers(pipeline, given_, negative), strict=True))
        assert found.keys() == expected.keys()
        for name in names:
            assert found[name].equal(expected[name]), name


@pytest.mark.parametrize(
    ("prompt", "fragments"),
    [
        ("a (red) fox", [("a ", 1.0), ("red", WEIGHT), (" fox", 1.0)]),
        ("a ((red)) fox", [("a ", 1.0), ("red", 1.21), (" fox", 1.0)]),
        ("a [red] fox", [("a ", 1.0), ("red", round(1 / WEIGHT, 6)), (" fox", 1.0)]),
        ("[[red]]", [("red", round(1 / WEIGHT**2, 6))]),
        ("(red:1.3)", [("red", 1.3)]),
        ("(red fox, dawn:.5)", [("red fox, dawn", 0.5)]),
        ("(red: 2. )", [("red", 2.0)]),
        ("(red:0)(green:-1)", [("red", 0.0), ("green", -1.0)]),
        ("(a (red:1.5) fox:2)", [("a ", 2.0), ("red", 3.0), (" fox", 2.0)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(red)(fox)", [("redfox", WEIGHT)]),
        ("[a:b:0.5]", [("a:b:0.5", round(1 / WEIGHT, 6))]),
        ("(a:1.2.3)", [("a:1.2.3", WEIGHT)]),
        ("(1:2)", [("1", 2.0)]),
        ("(:1.2)", [("(:1.2)", 1.0)]),
        (r"miku_\(vocaloid\)", [("miku_(vocaloid)", 1.0)]),
        (r"(miku \(vocaloid\):1.2)", [("miku (vocaloid)", 1.2)]),
        (r"\\(red\\)", [("\\", 1.0), ("red\\", WEIGHT)]),
        ("((red)", [("(", 1.0), ("red", WEIGHT)]),
        ("(())", [("()", WEIGHT)]),
        ("(a [b) c]", [("(a ", 1.0), ("b) c", round(1 / WEIGHT, 6))]),
        ("(red))", [("red", WEIGHT), (")", 1.0)]),
        (":( and :)", [(":", 1.0), (" and :", WEIGHT)]),
        ("(red:99999)", [("red", 10.0)]),
        ("(red:" + "9" * 400 + ")", [("red", 10.0)]),
        ("", [("", 1.0)]),
    ],
)
def test_weights_are_written_as_in_a1111(prompt: str, fragments: list[tuple[str, float]]) -> None:
    assert _read(prompt) == fragments


@given(st.lists(st.tuples(st.text("ab c", min_size=1), st.sampled_from([0.5, 1.3, 2.0])), max_size=5))
def test_fragments_hold_the_text_without_its_marks(parts: list[tuple[str, float]]) -> None:
    prompt = "".join(f"({text}:{weight})" for text, weight in parts if text.strip())
    assert "".join(text for text, _ in _read(prompt)) == "".join(text for text, _ in parts if text.strip())


@pytest.mark.parametrize(
    "marks", ["(", "[", "()", "(a", "a)", ":", ":1", ":1)", "(a:1)", "[a]", "\\", "\\(", '"', "((a:2)"]
)
def test_the_longest_prompt_of_any_marks_is_read_at_once(marks: str) -> None:
    began = time.process_time()
    _read((marks * LONGEST)[:LONGEST])
    _read(("(" * (LONGEST // 2 - 1) + "a" + ")" * LONGEST)[:LONGEST])
    _read(":" + "1" * LONGEST)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("weight", ["0", "0.5", "2", "-1", "10", "1e9", "-99999"])
def test_any_weight_gives_numbers(encoded: Encode, weight: str) -> None:
    for found in encoded(f"a (red:{weight}) fox", f"(blurry:{weight})").values():
        assert found.isfinite().all()


def test_a_weight_moves_its_own_words_away_from_the_empty_prompt(encoded: Encode) -> None:
    empty, plain = encoded("")["prompt_embeds"], encoded("abc")["prompt_embeds"]
    heavy = encoded("(abc:2)")["prompt_embeds"]
    words, rest = slice(1, 4), slice(4, None)
    assert heavy[:, words].allclose(empty[:, words] + 2 * (plain[:, words] - empty[:, words]), atol=1e-5)
    assert heavy[:, rest].equal(plain[:, rest])
    assert encoded("(abc:0)")["prompt_embeds"][:, words].allclose(empty[:, words], atol=1e-5)


def test_the_pooled_embedding_is_that_of_the_words_alone(encoded: Encode) -> None:
    assert encoded("a (red:1.5) fox")["pooled_prompt_embeds"].equal(encoded("a red fox")["pooled_prompt_embeds"])


@pytest.mark.parametrize(
    ("prompt", "negative_prompt", "chunks"),
    [
        ("a" * 76, "", 2),
        ("", "a" * 76, 2),
        ("a" * 76, "b" * 226, 4),
        ("(" + "a" * 76 + ":1.5)", "", 2),
        ("a" * 60 + ", " + "b" * 60, "", 2),
    ],
)
def test_a_long_prompt_is_encoded_in_chunks_and_both_prompts_have_as_many(
    encoded: Encode, prompt: str, negative_prompt: str, chunks: int
) -> None:
    found = encoded(prompt, negative_prompt)
    assert found["prompt_embeds"].shape[1] == found["negative_prompt_embeds"].shape[1] == 77 * chunks
    assert all(found[name].shape == (1, 48) for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds"))


def test_chunks_end_where_phrases_do(encoded: Encode) -> None:
    together = encoded("a" * 60 + ", " + "b" * 60)["prompt_embeds"]
    first, second = encoded("a" * 60 + ",")["prompt_embeds"], encoded("b" * 60)["prompt_embeds"]
    assert together[:, :77].equal(first)
    assert together[:, 77:].equal(second)


def test_the_end_of_a_long_prompt_matters(encoded: Encode) -> None:
    assert not encoded("a" * 80 + "x")["prompt_embeds"].equal(encoded("a" * 80 + "y")["prompt_embeds"])


MIXED = "a (red:1.5) [fox] " + "b" * 100


def test_encoders_whose_weights_are_elsewhere_until_they_are_needed_give_the_same(
    tiny_model: Path, encoded: Encode
) -> None:
    import torch  # noqa: PLC0415 - only where it is needed
    from accelerate import cpu_offload  # noqa: PLC0415 - as above
    from diffusers import StableDiffusionXLPipeline  # noqa: PLC0415 - as above

    from dreamforge.runners.prompts import encode  # noqa: PLC0415 - as above

    offloaded: Any = StableDiffusionXLPipeline.from_pretrained(str(tiny_model), local_files_only=True)
    for encoder in (offloaded.text_encoder, offloaded.text_encoder_2):
        cpu_offload(encoder, execution_device=torch.device("cpu"))
        assert encoder.device.type == "meta"
    found = encode(offloaded, prompt=MIXED, negative_prompt="(blurry)", is_guided=True, device="cpu")
    for name, expected in encoded(MIXED, "(blurry)").items():
        assert found[name].equal(expected)


def test_half_precision_stays_half_precision(tiny_model: Path) -> None:
    import torch  # noqa: PLC0415 - only where it is needed
    from diffusers import StableDiffusionXLPipeline  # noqa: PLC0415 - as above

    from dreamforge.runners.prompts import encode  # noqa: PLC0415 - as above

    half: Any = StableDiffusionXLPipeline.from_pretrained(str(tiny_model), local_files_only=True, dtype=torch.float16)
    for found in encode(half, prompt=MIXED, negative_prompt="(x:-10)", is_guided=True, device="cpu").values():
        assert found.dtype is torch.float16
        assert found.isfinite().all()


def test_without_guidance_there_is_no_negative_prompt(encoded: Encode) -> None:
    found = encoded("a fox", "b" * 100, is_guided=False)
    assert found.keys() == {"prompt_embeds", "pooled_prompt_embeds"}
    assert found["prompt_embeds"].shape[1] == 77


SYNTAX = st.text(st.sampled_from("ab1.,:;!+-\"'()[]\\<>|= "), max_size=120)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.one_of(SYNTAX, st.text(max_size=120)), negative_prompt=SYNTAX)
@example(prompt="(<|startoftext|>cat:0.5) ( :0.5)", negative_prompt="[<|endoftext|>]")
@example(prompt="(" * LONGEST, negative_prompt="[a]" * 300)
@example(prompt="(👩‍👩‍👧‍👦, 1:2)" * 200, negative_prompt="!" * 200)
def test_any_text_is_encoded(encoded: Encode, prompt: str, negative_prompt: str) -> None:
    found = encoded(prompt, negative_prompt)
    assert found["prompt_embeds"].shape == found["negative_prompt_embeds"].shape
    assert all(tensor.isfinite().all() for tensor in found.values())
