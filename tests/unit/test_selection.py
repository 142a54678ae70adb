"""Which files of a repository are the model."""

from collections.abc import Collection

import pytest

from dreamforge.errors import DreamForgeError, InvalidRequest, ModelCorrupt, ModelIncompatible, SourceNotFound
from dreamforge.models.sources.selection import Offer, Selection, select
from dreamforge.models.weights import Kind

CONFIGS = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
}
VOCABULARY = {
    f"{folder}/{name}"
    for folder in ("tokenizer", "tokenizer_2")
    for name in ("merges.txt", "vocab.json", "special_tokens_map.json", "tokenizer_config.json")
}
MODELS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"} | dict.fromkeys(
    ("text_encoder", "text_encoder_2"), "model"
)
FULL = {f"{part}/{stem}.safetensors" for part, stem in MODELS.items()}
HALF = {f"{part}/{stem}.fp16.safetensors" for part, stem in MODELS.items()}
# What else stabilityai/stable-diffusion-xl-base-1.0 has.
MORE = {
    ".gitattributes",
    "01.png",
    "LICENSE.md",
    "README.md",
    "sd_xl_base_1.0.safetensors",
    "sd_xl_base_1.0_0.9vae.safetensors",
    "sd_xl_offset_example-lora_1.0.safetensors",
    "text_encoder/flax_model.msgpack",
    "text_encoder/model.onnx",
    "text_encoder/openvino_model.bin",
    "unet/diffusion_flax_model.msgpack",
    "unet/model.onnx",
    "vae_1_0/config.json",
    "vae_1_0/diffusion_pytorch_model.safetensors",
    "vae_decoder/model.onnx",
}


def _select(paths: Collection[str], *, build: str | None = None) -> Selection:
    return select(Offer(name="org/repo", paths=paths, reference_to=lambda path: f"hf:org/repo:{path}", build=build))


def test_of_a_pipeline_only_what_sdxl_needs_is_taken_in_half_precision() -> None:
    selection = _select(CONFIGS | VOCABULARY | FULL | HALF | MORE, build="StableDiffusionXLPipeline")
    assert set(selection.paths) == CONFIGS | VOCABULARY | HALF
    assert len(selection.paths) == len(set(selection.paths))
    assert selection.kind is Kind.CHECKPOINT
    assert selection.main is None


def test_weights_of_full_precision_are_taken_where_there_are_no_others() -> None:
    paths = CONFIGS | VOCABULARY | FULL | (HALF - {"vae/diffusion_pytorch_model.fp16.safetensors"})
    chosen = set(_select(paths).paths)
    assert chosen >= {"vae/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"}
    assert "unet/diffusion_pytorch_model.safetensors" not in chosen


@pytest.mark.parametrize(
    ("index", "shard"),
    [
        ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model-0000{}-of-00002.safetensors"),
        (
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            "diffusion_pytorch_model.fp16-0000{}-of-00002.safetensors",
        ),
        (
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            "diffusion_pytorch_model-0000{}-of-00002.fp16.safetensors",
        ),
    ],
)
def test_shards_come_with_their_index_all_or_none(index: str, shard: str) -> None:
    rest = CONFIGS | VOCABULARY | FULL - {"unet/diffusion_pytorch_model.safetensors"} | {f"unet/{index}"}
    shards = {f"unet/{shard.format(number)}" for number in (1, 2)}
    others = {"unet/diffusion_pytorch_model-00001-of-00003.safetensors.tmp"}
    assert set(_select(rest | shards | others).paths) == rest | shards
    with pytest.raises(SourceNotFound, match="the unet of org/repo"):
        _select(rest | {f"unet/{shard.format(1)}"})


def test_half_precision_in_shards_is_not_mixed_with_full() -> None:
    unet = {
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/diffusion_pytorch_model-00001-of-00001.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
        "unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
    }
    chosen = _select(CONFIGS | VOCABULARY | FULL - {"unet/diffusion_pytorch_model.safetensors"} | unet).paths
    assert {path for path in chosen if path in unet} == {path for path in unet if "fp16" in path}


def test_a_lora_is_known_by_its_file() -> None:
    selection = _select({"README.md", "pytorch_lora_weights.safetensors", "image.safetensors"})
    assert selection == Selection(
        ("pytorch_lora_weights.safetensors",), main="pytorch_lora_weights.safetensors", kind=Kind.LORA
    )


def test_a_vae_is_a_folder_of_its_own() -> None:
    paths = {
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
        "sdxl_vae.safetensors",
    }
    expected = Selection(("config.json", "diffusion_pytorch_model.safetensors"), kind=Kind.VAE)
    assert _select(paths) == expected
    assert _select(paths, build="AutoencoderKL") == expected
    with pytest.raises(ModelIncompatible, match="ControlNetModel"):
        _select(paths, build="ControlNetModel")


def test_a_single_file_is_the_model() -> None:
    assert _select({"README.md", "x.safetensors", "x.png"}) == Selection(("x.safetensors",), main="x.safetensors")


def test_of_several_files_one_has_to_be_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        _select({"b.safetensors", "a.safetensors", "sub/c.safetensors"})
    assert "Say which: hf:org/repo:a.safetensors, hf:org/repo:b.safetensors, hf:org/repo:sub/c" in caught.value.message
    assert len(caught.value.details["choices"]) == 3
    with pytest.raises(InvalidRequest, match="and 80 more"):
        _select({f"{number}.safetensors" for number in range(100)})


@pytest.mark.parametrize(
    ("paths", "build", "error", "words"),
    [
        (CONFIGS | VOCABULARY | FULL, "FluxPipeline", ModelIncompatible, "FluxPipeline"),
        (CONFIGS - {"text_encoder/config.json"} | FULL, None, ModelIncompatible, "has no text_encoder/config.json"),
        ({"model_index.json", "unet/config.json"}, None, ModelIncompatible, "no whole SDXL model"),
        (
            CONFIGS | FULL - {"unet/diffusion_pytorch_model.safetensors"} | {"unet/diffusion_pytorch_model.bin"},
            None,
            ModelCorrupt,
            "the unet of org/repo are in pickles only",
        ),
        ({"model.ckpt", "README.md"}, None, ModelCorrupt, r"pickles only, model\.ckpt"),
        ({"README.md"}, None, SourceNotFound, "no safetensors"),
        (set(), None, SourceNotFound, "no safetensors"),
    ],
)
def test_what_is_no_model_of_sdxl_is_said(
    paths: set[str], build: str | None, error: type[DreamForgeError], words: str
) -> None:
    with pytest.raises(error, match=words):
        _select(paths, build=build)
