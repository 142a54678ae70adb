"""What weights are, by the names and shapes of their tensors."""

from pathlib import Path

import pytest

from dreamforge.errors import ModelIncompatible
from dreamforge.models.safetensors_header import read_header
from dreamforge.models.weights import Expected, Weights, weights_of
from tests import weights

TINY = Expected(cross_attention_dim=64, transformer_blocks=None)
LAYER = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"


def _weights(path: Path, expected: Expected | None = None) -> Weights:
    return weights_of(read_header(path), name=path.name, expected=expected or Expected())


def _pair(name: str) -> dict[str, tuple[int, ...]]:
    """Both sides of a LoRA's layer; its name has a gap for `down` and `up`."""
    return {name.format("down"): (4, 2048), name.format("up"): (8, 4)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of no content yet."""
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize(("dtype", "said"), [("F16", "fp16"), ("BF16", "bf16"), ("F32", "fp32")])
def test_an_sdxl_checkpoint_is_one_in_each_precision(path: Path, dtype: str, said: str) -> None:
    found = _weights(weights.write(path, weights.sdxl_checkpoint(), dtype=dtype))
    assert found.told() == {
        "architecture": "sdxl", "dtype": said, "cross_attention_dim": 2048, "latent_channels": 4,
    }  # fmt: skip
    assert found.kind == "checkpoint"


def test_another_size_is_expected_where_it_is_said(path: Path) -> None:
    weights.write(path, weights.sdxl_checkpoint(width=64, blocks=3))
    assert _weights(path, TINY).cross_attention_dim == 64
    with pytest.raises(ModelIncompatible, match="is a checkpoint of a model whose cross-attention is 64 wide"):
        _weights(path)


@pytest.mark.parametrize("metadata", [{"modelspec.prediction_type": "v"}, {}])
def test_v_prediction_is_told(path: Path, metadata: dict[str, str]) -> None:
    shapes = weights.sdxl_checkpoint() | ({} if metadata else {"v_pred": ()})
    assert _weights(weights.write(path, shapes, metadata=metadata)).prediction == "v_prediction"


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (weights.sd_checkpoint(), "is a checkpoint of Stable Diffusion 1, not of SDXL"),
        (weights.sd_checkpoint(width=1024), "is a checkpoint of Stable Diffusion 2, not of SDXL"),
        (weights.sdxl_refiner(), "is a checkpoint of the SDXL refiner, not of SDXL"),
        (weights.sdxl_checkpoint(blocks=40), "a smaller model made from SDXL"),
        (weights.sdxl_checkpoint(channels=9), "it is an inpainting model"),
        (weights.sdxl_checkpoint(channels=8), "it edits images by instruction"),
        (weights.sdxl_checkpoint() | {"edm_mean": (4,)}, "a Playground 2.5 model"),
        ({"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (8, 8)}, "a Flux model"),
        ({"double_blocks.0.img_attn.qkv.weight": (8, 8)}, "a Flux model"),
        ({"model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight": (8, 8)}, "a Stable Diffusion 3 model"),
        ({"controlnet_cond_embedding.conv_in.weight": (8, 8), "down_blocks.0.x": (1,)}, "a ControlNet"),
        ({"down_blocks.0.resnets.0.norm1.weight": (8,), "add_embedding.linear_1.weight": (8, 8)}, "a UNet alone"),
        ({"clip_l": (4, 768), "clip_g": (4, 1280)}, "a textual inversion embedding"),
        ({"anything": (3,)}, "weights of a kind that is not known here"),
    ],
)
def test_what_cannot_be_drawn_with_is_called_by_its_name(
    path: Path, shapes: dict[str, tuple[int, ...]], words: str
) -> None:
    with pytest.raises(ModelIncompatible, match=words) as caught:
        _weights(weights.write(path, shapes))
    assert caught.value.details["file"] == path.name


@pytest.mark.parametrize(
    ("prefix", "words"),
    [("conditioner.embedders.1", "it lacks its text encoders"), ("first_stage_model", "it lacks its VAE")],
)
def test_a_checkpoint_is_whole(path: Path, prefix: str, words: str) -> None:
    shapes = {name: shape for name, shape in weights.sdxl_checkpoint().items() if not name.startswith(prefix)}
    with pytest.raises(ModelIncompatible, match=words):
        _weights(weights.write(path, shapes))


@pytest.mark.parametrize(("dtype", "said"), [("F8_E4M3", "fp8"), ("F64", "F64"), ("I8", "I8"), ("U8", "U8")])
def test_other_precisions_are_refused(path: Path, dtype: str, said: str) -> None:
    with pytest.raises(ModelIncompatible, match=f"has weights in {said}; fp16, bf16, fp32 can be read"):
        _weights(weights.write(path, weights.sdxl_checkpoint(), dtype=dtype))


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
@pytest.mark.parametrize("block", ["mid.block_1", "mid_block.resnets.0"])
def test_a_vae_is_one_under_every_name(path: Path, prefix: str, block: str) -> None:
    found = _weights(weights.write(path, weights.vae(prefix=prefix, block=block), dtype="F32"))
    assert found.kind == "vae"
    assert found.told() == {"architecture": "kl-f8", "dtype": "fp32", "latent_channels": 4}


def test_another_model_s_vae_is_refused(path: Path) -> None:
    with pytest.raises(ModelIncompatible, match=r"16 latent channels, not 4\. It is that of Flux"):
        _weights(weights.write(path, weights.vae(channels=16)))
    half = {name: shape for name, shape in weights.vae().items() if name.startswith("decoder")}
    with pytest.raises(ModelIncompatible, match="without its encoder"):
        _weights(weights.write(path, half))


@pytest.mark.parametrize(
    "shapes",
    [
        weights.kohya_lora(),
        weights.peft_lora(),
        _pair("unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.{}.weight"),
        _pair("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.lora.{}.weight"),
        weights.peft_lora() | _pair("text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.{}.weight"),
        weights.kohya_lora() | _pair("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_{}.weight"),
    ],
    ids=["kohya", "peft", "attention processors", "old names", "linear layers", "with a text encoder"],
)
def test_a_lora_is_one_under_every_name(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    found = _weights(weights.write(path, shapes, dtype="BF16"))
    assert found.kind == "lora"
    assert found.told() == {"architecture": "sdxl", "dtype": "bf16", "cross_attention_dim": 2048, "adapter": "lora"}


@pytest.mark.parametrize(
    ("shapes", "metadata"),
    [
        (_pair("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_{}.weight"), None),
        (_pair("text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.{}.weight"), None),
        (
            _pair("lora_unet_mid_block_resnets_0_conv1.lora_{}.weight"),
            {"ss_base_model_version": "sdxl_base_v1-0"},
        ),
    ],
)
def test_a_lora_without_cross_attention_is_told_by_other_means(
    path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None
) -> None:
    found = _weights(weights.write(path, shapes, metadata=metadata))
    assert (found.architecture, found.cross_attention_dim) == ("sdxl", None)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (weights.kohya_lora(width=768), "is a LoRA for Stable Diffusion 1, not for SDXL"),
        (weights.peft_lora(width=1024), "is a LoRA for Stable Diffusion 2, not for SDXL"),
        (weights.peft_lora(width=64), "is a LoRA for a model whose cross-attention is 64 wide"),
        ({"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": (4, 8)}, "is a LoRA for a Flux model"),
        ({"transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight": (4, 8)}, "is a LoRA for a Flux model"),
        ({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 768)}, "a model that it does not tell"),
        ({"base_model.model.attn2.to_k.lora_A.weight": (4, 2048)}, "names its layers in a way that is not known"),
        ({f"{LAYER}.hada_w1_a": (8, 4)}, "is a LoHa; only LoRAs"),
        ({f"{LAYER}.lokr_w1": (8, 4)}, "is a LoKr; only LoRAs"),
        ({f"{LAYER}.oft_blocks": (8, 4)}, "is an OFT; only LoRAs"),
        (weights.kohya_lora() | {f"{LAYER}.dora_scale": (8, 1)}, "is a DoRA; only LoRAs"),
        (weights.peft_lora() | {"unet.attn2.to_k.lora_magnitude_vector": (8,)}, "is a DoRA; only LoRAs"),
        (weights.kohya_lora() | {f"{LAYER}.diff_b": (8,)}, rf"cannot be loaded for its '{LAYER}\.diff_b'; kohya's"),
        ({f"{LAYER}.lora_down.weight": (4, 2048)}, f"cannot be loaded for its '{LAYER}'; kohya's LoRAs and diffusers'"),
    ],
)
def test_a_lora_that_cannot_be_drawn_with_is_told_why(
    path: Path, shapes: dict[str, tuple[int, ...]], words: str
) -> None:
    with pytest.raises(ModelIncompatible, match=words):
        _weights(weights.write(path, shapes))


def test_a_lora_of_another_size_is_expected_where_it_is_said(path: Path) -> None:
    assert _weights(weights.write(path, weights.peft_lora(width=64)), TINY).cross_attention_dim == 64
    with pytest.raises(ModelIncompatible, match="is a LoRA for SDXL, not for one that is 64 wide"):
        _weights(weights.write(path, weights.peft_lora()), TINY)
