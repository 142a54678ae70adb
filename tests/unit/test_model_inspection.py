"""What a file or folder is that somebody calls a model."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dreamforge.errors import InvalidRequest, ModelCorrupt, ModelIncompatible
from dreamforge.models.description import describe
from dreamforge.models.descriptor import ModelFile
from dreamforge.models.files import checkpoint_hash, hash_folder
from dreamforge.models.inspection import inspect
from dreamforge.models.safetensors_header import LENGTH_BYTES, LONGEST_HEADER, read_header
from dreamforge.models.weights import Kind
from tests import weights

SCHEDULER = "scheduler/scheduler_config.json"
UNET = {
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (8, 64),
    "conv_in.weight": (8, 4, 3, 3),
}
VAE = weights.vae(block="mid_block.resnets.0")
CONFIGS: dict[str, dict[str, Any]] = {
    "model_index.json": {
        "_class_name": "StableDiffusionXLPipeline",
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    },
    "scheduler/scheduler_config.json": {"prediction_type": "epsilon", "timestep_spacing": "leading"},
    "tokenizer/tokenizer.json": {},
    "tokenizer_2/vocab.json": {},
    "tokenizer_2/merges.txt": {},
    "unet/config.json": {"cross_attention_dim": 64, "in_channels": 4, "sample_size": 8},
    "vae/config.json": {"latent_channels": 4, "scaling_factor": 0.13025, "block_out_channels": [32, 32, 32, 32]},
}
PARTS: dict[str, weights.Shapes] = {
    "unet/diffusion_pytorch_model.safetensors": UNET,
    "vae/diffusion_pytorch_model.safetensors": VAE,
    "text_encoder/model.safetensors": weights.text_encoder(),
    "text_encoder_2/model.safetensors": weights.text_encoder(pooled=True),
}


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A folder in diffusers' layout, of the built-in model's sizes, without weights."""
    folder = tmp_path / "configs"
    for name, content in CONFIGS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(configs: Path, tmp_path: Path) -> Path:
    """The same with weights."""
    folder = Path(shutil.copytree(configs, tmp_path / "my-xl"))
    for name, shapes in PARTS.items():
        weights.write(folder / name, shapes)
    return folder


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _reason(path: Path) -> str:
    with pytest.raises(ModelCorrupt) as caught:
        inspect(path)
    return caught.value.details["reason"]


def test_a_checkpoint_in_one_file_is_known_by_its_sha256(tmp_path: Path) -> None:
    metadata = {"modelspec.title": "My\0 \ud800XL", "ss_tag_frequency": "{}", "modelspec.architecture": "x" * 300}
    path = weights.write(tmp_path / "my.safetensors", weights.sdxl_checkpoint(), metadata=metadata)
    told: list[tuple[int, int]] = []
    found = inspect(path, on_bytes=lambda done, total: told.append((done, total)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.kind, found.layout, found.edge) == ("checkpoint", "file", 1024)
    assert (found.checkpoint_hash, [file.sha256 for file in found.files]) == (digest, [digest])
    assert told[-1] == (path.stat().st_size, path.stat().st_size)
    assert found.metadata == {
        "layout": "file",
        "weights": {"architecture": "sdxl", "dtype": "fp16", "cross_attention_dim": 2048, "latent_channels": 4},
        "header": {"modelspec.title": "My XL", "modelspec.architecture": "x" * 200},
    }
    described = describe(found, name="my", version="1")
    assert (described.kind, described.capabilities) == ("sdxl", ("generate",))
    width = described.parameters_schema["properties"]["width"]
    assert (width["minimum"], width["maximum"], width["default"]) == (256, 2048, 1024)


def test_a_folder_of_configurations_says_what_fits(configs: Path, tmp_path: Path) -> None:
    path = weights.write(tmp_path / "tiny.safetensors", weights.sdxl_checkpoint(width=64, blocks=2))
    found = inspect(path, config=configs)
    assert found.metadata["config_path"] == str(configs)
    assert found.edge == 64
    schema = describe(found, name="tiny", version="1").parameters_schema
    assert (schema["properties"]["width"]["minimum"], schema["properties"]["width"]["default"]) == (64, 64)
    assert inspect(weights.write(tmp_path / "l.safetensors", weights.peft_lora(width=64)), config=configs).edge is None
    with pytest.raises(ModelIncompatible):
        inspect(path)


def test_a_lora_is_known_by_its_tensors_too(tmp_path: Path) -> None:
    fill = bytes(range(256)) * 64
    hashes: set[str] = set()
    for title in ("one", "another one"):
        metadata = {"modelspec.title": title}
        path = weights.write(tmp_path / "lora.safetensors", weights.kohya_lora(), metadata=metadata, fill=fill)
        found = inspect(path)
        data = path.read_bytes()[read_header(path).data_offset :]
        assert found.metadata["tensor_hash"] == hashlib.sha256(data).hexdigest()
        assert found.checkpoint_hash == hashlib.sha256(path.read_bytes()).hexdigest()
        hashes.add(found.metadata["tensor_hash"])
    assert len(hashes) == 1, "whatever is said of it"
    described = describe(found, name="lora", version="1")
    assert (described.kind, described.capabilities, described.parameters_schema["properties"]) == ("lora", (), {})


def test_tensors_that_begin_behind_the_first_read_are_hashed_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"

    def begins(tags: int) -> int:
        metadata = {"ss_tag_frequency": "x" * tags}
        return read_header(weights.write(path, weights.kohya_lora(), metadata=metadata, fill=b"weights")).data_offset

    # The longest header there may be, and its length in front.
    assert begins(LONGEST_HEADER + LENGTH_BYTES - begins(0)) == LONGEST_HEADER + LENGTH_BYTES
    data = path.read_bytes()[read_header(path).data_offset :]
    assert inspect(path).metadata["tensor_hash"] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("kind", [None, Kind.CHECKPOINT])
def test_a_pipeline_s_folder_is_a_checkpoint(folder: Path, kind: Kind | None) -> None:
    found = inspect(folder, kind=kind)
    assert (found.kind, found.layout, found.edge, found.warnings) == ("checkpoint", "folder", 64, ())
    assert found.checkpoint_hash == checkpoint_hash(hash_folder(folder))
    assert {file.path for file in found.files} == {*CONFIGS, *PARTS}
    assert found.metadata["weights"] == {
        "architecture": "sdxl", "dtype": "fp16", "cross_attention_dim": 64, "latent_channels": 4,
        "scaling_factor": 0.13025,
    }  # fmt: skip


def test_weights_may_be_in_several_files(folder: Path) -> None:
    unet = folder / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    for number, (name, shape) in enumerate(UNET.items(), start=1):
        weights.write(unet / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors", {name: shape})
    places = {name: f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number, name in enumerate(UNET, 1)}
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert inspect(folder).weights.cross_attention_dim == 64
    index.write_text(json.dumps({"weight_map": {**places, "lost": next(iter(places.values()))}}))
    assert _reason(folder) == "missing"
    index.write_text(json.dumps({"weight_map": {**places, "x": "../vae/diffusion_pytorch_model.safetensors"}}))
    assert _reason(folder) == "config"
    index.write_text(json.dumps({"weight_map": places}))
    (unet / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    assert _reason(folder) == "missing"


def test_a_variant_is_told(folder: Path) -> None:
    for name in PARTS:
        (folder / name).rename(folder / name.replace(".safetensors", ".fp16.safetensors"))
    assert inspect(folder).metadata["weights"]["variant"] == "fp16"


def test_pickles_beside_safetensors_are_warned_of_and_alone_are_refused(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))
    (warning,) = inspect(folder).warnings
    assert "unet/diffusion_pytorch_model.bin is a pickle" in warning
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelCorrupt, match="safe_serialization=True"):
        inspect(folder)
    assert _reason(folder) == "pickle"


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "is a FluxPipeline"),
        ("model_index.json", {"text_encoder": [None, None]}, "it is the SDXL refiner"),
        ("model_index.json", {"vae": [None, None]}, "it has no vae"),
        ("model_index.json", {"unet": ["my_code", "MyUNet"]}, "the code of others is not run"),
        ("unet/config.json", {"cross_attention_dim": 2048}, "other weights than its configuration says"),
        ("unet/config.json", {"in_channels": 9}, "it is an inpainting model"),
        ("vae/config.json", {"latent_channels": 16}, "4 latent channels, not 16"),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
    ],
)
def test_a_folder_of_another_kind_is_told_apart(folder: Path, name: str, values: dict[str, Any], words: str) -> None:
    _change(folder / name, **values)
    with pytest.raises(ModelIncompatible, match=words):
        inspect(folder)


def test_another_family_s_folder_is_told_apart(folder: Path) -> None:
    _change(folder / "unet" / "config.json", cross_attention_dim=768)
    shapes = {name: (8, 768) if "attn2" in name else shape for name, shape in UNET.items()}
    weights.write(folder / "unet" / "diffusion_pytorch_model.safetensors", shapes)
    with pytest.raises(ModelIncompatible, match="is a model of Stable Diffusion 1"):
        inspect(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "model_index.json").write_text("["), "config"),
        (lambda folder: (folder / "model_index.json").write_text("{" + " " * 2**20 + "}"), "config"),
        (lambda folder: (folder / "unet" / "config.json").unlink(), "config"),
        (lambda folder: _change(folder / "unet" / "config.json", cross_attention_dim="64"), "config"),
        (lambda folder: _change(folder / "vae" / "config.json", block_out_channels=[1] * 99), "config"),
        (lambda folder: shutil.rmtree(folder / "text_encoder_2"), "missing"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "missing"),
        (lambda folder: (folder / "tokenizer_2" / "merges.txt").unlink(), "missing"),
        (lambda folder: shutil.rmtree(folder / "scheduler"), "config"),
        (lambda folder: _change(folder / SCHEDULER, prediction_type="guess"), "config"),
        (lambda folder: _change(folder / SCHEDULER, prediction_type="sample"), "config"),
        (lambda folder: _change(folder / SCHEDULER, beta_schedule="cubic"), "config"),
        (lambda folder: _change(folder / SCHEDULER, timestep_spacing=["leading"]), "config"),
        (lambda folder: weights.write(folder / "text_encoder" / "model.safetensors", VAE), "other_weights"),
        (
            lambda folder: weights.write(folder / "text_encoder_2" / "model.safetensors", weights.text_encoder()),
            "other_weights",
        ),
        (lambda folder: os.truncate(folder / "vae" / "diffusion_pytorch_model.safetensors", 600), "truncated"),
    ],
)
def test_a_broken_folder_is_refused(folder: Path, change: Callable[[Path], object], reason: str) -> None:
    change(folder)
    assert _reason(folder) == reason


@pytest.mark.parametrize("values", [{}, {"prediction_type": "v_prediction"}, {"timestep_spacing": None}])
def test_a_scheduler_says_what_it_likes_of_what_is_known(folder: Path, values: dict[str, str | None]) -> None:
    (folder / SCHEDULER).write_text(json.dumps(values))
    weights.write(folder / "text_encoder" / "model.safetensors", weights.text_encoder(prefix=""))
    assert inspect(folder).kind == "checkpoint"


def test_what_a_scheduler_says_is_told(folder: Path) -> None:
    _change(folder / SCHEDULER, prediction_type="guess")
    with pytest.raises(ModelCorrupt, match="has a prediction_type of 'guess'; epsilon, v_prediction can be"):
        inspect(folder)


def test_a_scheduler_of_another_kind_of_noise_is_another_model_s(folder: Path) -> None:
    _change(folder / SCHEDULER, _class_name="EDMDPMSolverMultistepScheduler")
    with pytest.raises(ModelIncompatible, match="another kind of noise"):
        inspect(folder)


@pytest.mark.parametrize("factor", ["NaN", "-Infinity", "1e999", "9" * 400, "0", "-1", "100", "true", '"1"', "null"])
def test_a_scaling_factor_is_a_number_that_can_be_kept(folder: Path, factor: str) -> None:
    (folder / "vae" / "config.json").write_text(f'{{"latent_channels": 4, "scaling_factor": {factor}}}')
    assert _reason(folder) == _reason(folder / "vae") == "config"


def test_links_are_followed_and_what_is_no_file_is_refused(folder: Path, tmp_path: Path) -> None:
    before = inspect(folder).checkpoint_hash
    cache = tmp_path / "blobs"
    cache.mkdir()
    for number, name in enumerate(PARTS):
        (folder / name).rename(cache / str(number))
        (folder / name).symlink_to(cache / str(number))
    (folder / "vae").rename(cache / "vae")
    (folder / "vae").symlink_to(cache / "vae")
    (folder / "vae" / "up").symlink_to(folder)
    assert inspect(folder).checkpoint_hash == before
    os.mkfifo(folder / "pipe")
    with pytest.raises(ModelCorrupt, match="pipe is no ordinary file"):
        inspect(folder)
    (folder / "pipe").unlink()
    (folder / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ModelCorrupt, match="dangling leads to nothing"):
        inspect(folder)


def test_what_is_hidden_is_not_the_model(folder: Path) -> None:
    before = inspect(folder).checkpoint_hash
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").touch()
    (folder / ".gitattributes").touch()
    assert inspect(folder).checkpoint_hash == before


def test_a_file_that_changes_meanwhile_is_noticed(folder: Path, tmp_path: Path) -> None:
    path = weights.write(tmp_path / "my.safetensors", weights.sdxl_checkpoint())
    for model, file in ((path, path), (folder, folder / "unet" / "config.json")):
        with pytest.raises(ModelCorrupt, match="changed while it was read"):
            inspect(model, on_bytes=lambda _, __, file=file: os.utime(file, ns=(1, 1)))


def test_a_vae_s_folder_is_one(folder: Path) -> None:
    found = inspect(folder / "vae")
    assert (found.kind, found.layout, found.edge) == ("vae", "folder", None)
    assert found.metadata["weights"]["scaling_factor"] == 0.13025
    assert describe(found, name="fix", version="1").kind == "vae"
    _change(folder / "vae" / "config.json", scaling_factor=0.18215)
    with pytest.raises(ModelIncompatible, match="is the VAE of Stable Diffusion 1 or 2"):
        inspect(folder / "vae")


def test_a_lora_s_folder_leads_to_its_file(tmp_path: Path) -> None:
    path = weights.write(tmp_path / "lora" / "pytorch_lora_weights.safetensors", weights.peft_lora())
    found = inspect(tmp_path / "lora")
    assert (found.kind, found.layout, found.path) == ("lora", "file", path)


@pytest.mark.parametrize(
    ("shapes", "kind", "words"),
    [
        (weights.kohya_lora(), Kind.CHECKPOINT, "is a LoRA, not a checkpoint"),
        (weights.sdxl_checkpoint(), Kind.VAE, "is a checkpoint, not a VAE"),
        (weights.vae(), Kind.LORA, "is a VAE, not a LoRA"),
    ],
)
def test_what_it_has_to_be_it_is_held_to(tmp_path: Path, shapes: weights.Shapes, kind: Kind, words: str) -> None:
    with pytest.raises(ModelIncompatible, match=words):
        inspect(weights.write(tmp_path / "x.safetensors", shapes), kind=kind)


def test_what_is_no_model_is_told(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        inspect(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert _reason(tmp_path / "empty") == "no_model"
    weights.write(tmp_path / "empty" / "x.safetensors", weights.kohya_lora())
    with pytest.raises(ModelCorrupt, match=r"Name the file: .*/empty/x\.safetensors"):
        inspect(tmp_path / "empty")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelCorrupt, match="pipe is no ordinary file"):
        inspect(tmp_path / "pipe")
    assert _reason(weights.write(tmp_path / "x.ckpt", weights.sdxl_checkpoint())) == "name"
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "pytorch_lora_weights.bin").touch()
    assert _reason(tmp_path / "pickles") == "pickle"
    with pytest.raises(InvalidRequest, match="a configuration of its own"):
        inspect(folder, config=folder)


def test_what_was_hashed_just_now_is_not_read_again(folder: Path, tmp_path: Path) -> None:
    read: list[int] = []

    def on_bytes(done: int, total: int) -> None:
        del total
        read.append(done)

    known = {folder / file.path: replace(file, sha256="ab" * 32) for file in hash_folder(folder)}
    found = inspect(folder, known=known, on_bytes=on_bytes)
    assert ({file.sha256 for file in found.files}, read) == ({"ab" * 32}, [])
    # Another size is another file.
    smaller = {path: replace(file, size=file.size - 1) for path, file in known.items()}
    assert inspect(folder, known=smaller, on_bytes=on_bytes).checkpoint_hash == checkpoint_hash(hash_folder(folder))
    assert read

    path = weights.write(tmp_path / "vae.safetensors", weights.vae())
    read.clear()
    told = ModelFile(path="vae.safetensors", size=path.stat().st_size, sha256="cd" * 32)
    assert inspect(path, known={path: told}, on_bytes=on_bytes).checkpoint_hash == "cd" * 32
    assert read == []
