"""Models of one's own over the whole service: folders, single files, LoRAs, a VAE, and what is none."""

import io
import json
import pickle
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from dreamforge.images.reading import ReadMetadata, read_image
from tests import lora_files, single_file, weights
from tests.running_stack import RunningStack
from tests.web import web

pytestmark = pytest.mark.timeout(300)

PARAMS = {"prompt": "a (fox:1.2) at dawn", "negative_prompt": "fog", "seed": 5, "width": 64, "height": 64, "steps": 2}


@pytest.fixture(scope="module")
def folder(stack: RunningStack) -> Path:
    """The built-in model's folder."""
    (found,) = (stack.data_dir / "models" / "sdxl").glob("sdxl-tiny@*")
    return found


@pytest.fixture(scope="module")
def own(stack: RunningStack, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a single file, a LoRA and a VAE for it, that the service knows: `one-file`, `grain`, `fix`."""
    place = tmp_path_factory.mktemp("own")
    single_file.write(folder, place / "one-file.safetensors")
    lora_files.write_kohya(lora_files.layers_for(folder), place / "grain.safetensors")
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    save_file({**vae, "decoder.conv_out.weight": vae["decoder.conv_out.weight"] * 1.5}, place / "fix.safetensors")
    for name in ("one-file", "grain", "fix"):
        path = str(place / f"{name}.safetensors")
        imported = stack.command("model", "import", path, "--config", str(folder), "--no-default")
        assert imported.returncode == 0, imported.stderr
    return place


def _drawn(stack: RunningStack, **job: Any) -> list[bytes]:
    ended = stack.run(**job)
    assert (ended["status"], ended["error"]) == ("succeeded", None)
    return [web.get(artifact["url"], timeout=10).raise_for_status().content for artifact in stack.artifacts(ended)]


def _pixels(file: bytes) -> bytes:
    return Image.open(io.BytesIO(file)).tobytes()


def _read(file: bytes) -> ReadMetadata:
    read = read_image(file)
    assert read.manifest is not None
    return read


def test_a_single_file_draws_what_its_folder_draws(stack: RunningStack, own: Path) -> None:
    assert own
    (of_folder,) = _drawn(stack, model_id="sdxl-tiny", params=PARAMS)
    (of_file,) = _drawn(stack, model_id="one-file", params=PARAMS)
    assert _pixels(of_file) == _pixels(of_folder)
    manifest = _read(of_file).manifest
    assert manifest is not None
    assert manifest.model is not None
    told = stack.get("/v1/models/one-file").json()
    assert (manifest.model.name, manifest.model.sha256) == ("one-file", told["checkpoint_hash"])
    assert told["metadata"]["layout"] == "file"


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_loras_a_vae_and_a_batch_are_told_by_the_files(
    stack: RunningStack, own: Path, format: str, tmp_path: Path
) -> None:
    assert own
    params = {**PARAMS, "loras": [{"id": "grain", "weight": 0.5}], "vae": "fix", "preset": "fast", "format": format}
    files = _drawn(stack, model_id="one-file", count=2, params=params)
    for index, file in enumerate(files):
        with Image.open(io.BytesIO(file)) as image:
            assert image.format == format.upper()
        read = _read(file)
        manifest = read.manifest
        assert manifest is not None
        assert (manifest.seed, manifest.batch_size, manifest.item_index) == (5 + index, 2, index)
        assert manifest.preset is not None
        assert (manifest.preset.name, manifest.preset.version) == ("fast", 1)
        assert manifest.dtype == "float32"
        assert [(lora.name, lora.weight) for lora in manifest.loras] == [("grain", 0.5)]
        assert manifest.vae is not None
        assert manifest.vae.name == "fix"
        assert read.parameters is not None
        assert "<lora:grain:0.5>" in read.parameters
        assert "Lora hashes:" in read.parameters.splitlines()[-1]
    path = tmp_path / f"image.{format}"
    path.write_bytes(files[1])
    shown = stack.command("image", "show", str(path), "--json")
    assert json.loads(shown.stdout)["manifest"]["seed"] == 6


def test_the_command_line_names_them_too(stack: RunningStack, own: Path, tmp_path: Path) -> None:
    assert own
    options = ("--model", "one-file", "--lora", "grain:0.5", "--vae", "fix", "--preset", "quality", "--format", "webp")
    drawn = stack.command("generate", "a fox", *options, "--steps", "2", "--width", "64", "-o", str(tmp_path))
    assert drawn.returncode == 0, drawn.stderr
    (path,) = tmp_path.glob("*.webp")
    manifest = _read(path.read_bytes()).manifest
    assert manifest is not None
    named = {"loras": [{"id": "grain@1", "weight": 0.5}], "vae": "fix@1", "preset": "quality", "steps": 2}
    assert named.items() <= manifest.params.items()
    for wrong in ("grain:much", "grain:nan", ":1"):
        assert "NAME[:WEIGHT]" in stack.command("generate", "a fox", "--lora", wrong).stderr


def test_a_lora_and_a_vae_change_what_is_drawn(stack: RunningStack, own: Path) -> None:
    assert own
    plain, lora, nothing, vae = (
        _pixels(_drawn(stack, model_id="one-file", params={**PARAMS, **more})[0])
        for more in ({}, {"loras": [{"id": "grain"}]}, {"loras": [{"id": "grain", "weight": 0}]}, {"vae": "fix"})
    )
    assert nothing == plain
    assert len({plain, lora, vae}) == 3


def test_an_image_is_drawn_again_from_its_file(stack: RunningStack, own: Path, tmp_path: Path) -> None:
    assert own
    _, second = _drawn(stack, model_id="one-file", count=2, params={**PARAMS, "loras": [{"id": "grain"}]})
    (tmp_path / "second.png").write_bytes(second)
    again = stack.command("image", "rerun", str(tmp_path / "second.png"), "-o", str(tmp_path / "again"))
    assert again.returncode == 0, again.stderr
    (path,) = (tmp_path / "again").iterdir()
    assert _pixels(path.read_bytes()) == _pixels(second)
    shown = stack.command("image", "show", str(path)).stdout
    assert "one-file" in shown
    assert "grain" in shown


def _truncated(path: Path) -> None:
    weights.write(path, weights.sdxl_checkpoint())
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)


def _long_header(path: Path) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100 * 1024 * 1024))
        file.truncate(101 * 1024 * 1024)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncated, "model_corrupt"),
    "SD 1.5": (lambda path: weights.write(path, weights.sd_checkpoint()), "model_incompatible"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"state_dict": {}})), "model_corrupt"),
    "100 MB header": (_long_header, "model_corrupt"),
    "LoRA for SD 1.5": (lambda path: weights.write(path, weights.kohya_lora(width=768)), "model_incompatible"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_model_for_this_is_refused_with_its_code(stack: RunningStack, tmp_path: Path, name: str) -> None:
    make, code = BAD[name]
    make(tmp_path / "x.safetensors")
    refused = stack.command("model", "import", str(tmp_path / "x.safetensors"))
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"✗ {code}: ")
    assert "x" not in {model["name"] for model in stack.get("/v1/models").json()["items"]}


def test_a_lora_for_another_model_is_refused_with_the_job(stack: RunningStack, own: Path, tmp_path: Path) -> None:
    assert own
    weights.write(tmp_path / "wide.safetensors", weights.kohya_lora())
    assert stack.command("model", "import", str(tmp_path / "wide.safetensors")).returncode == 0
    body = {"type": "generate", "model_id": "one-file", "params": {**PARAMS, "loras": [{"id": "wide"}]}}
    refused = web.post(f"{stack.base_url}/v1/jobs", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "model_incompatible")


def test_files_that_are_spoiled_after_their_import_fail_their_jobs_and_no_others(
    stack: RunningStack, own: Path, tmp_path: Path, folder: Path
) -> None:
    path = tmp_path / "later.safetensors"
    path.write_bytes((own / "one-file.safetensors").read_bytes())
    command = ("model", "import", str(path), "--config", str(folder), "--no-default")
    assert stack.command(*command).returncode == 0
    path.write_bytes(path.read_bytes()[:100_000])
    job = stack.run(model_id="later", params=PARAMS)
    assert (job["status"], job["error"]["code"]) == ("failed", "model_corrupt")
    assert str(path) not in json.dumps(job["error"])
    assert _drawn(stack, model_id="one-file", params=PARAMS)


def test_the_list_tells_kinds_and_states(stack: RunningStack, own: Path) -> None:
    assert own
    listed: subprocess.CompletedProcess[str] = stack.command("model", "list")
    rows = {line.split()[0]: line.split()[2] for line in listed.stdout.splitlines()[1:]}
    assert {rows[name] for name in ("grain", "fix", "one-file")} == {"lora", "vae", "sdxl"}
