"""`dreamforge image show` and `image rerun`, at the API and its servers."""

import json
import os
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from dreamforge.api.state import ApiState
from dreamforge.embedded.object_store import ObjectStore
from dreamforge.images.encode import encode
from dreamforge.images.manifest import Manifest, ManifestModel
from dreamforge.images.parameters_text import parameters_text
from dreamforge.store.models import NewModel
from tests.integration.cli import command, environment, get, ran, succeeded
from tests.integration.door import served
from tests.integration.factories import a_model, finish
from tests.service import wait_for

HASH = "ab" * 32
PARAMS: dict[str, Any] = {
    "prompt": "a fox, in fog",
    "negative_prompt": "rain",
    "width": 72,
    "height": 64,
    "steps": 3,
    "guidance_scale": 5.0,
    "scheduler": "dpmpp_2m_karras",
    "seed": 40,
    "format": "jpeg",
    "quality": 80,
}
FOX = Manifest(
    job_id="0192f0c1-0000-7000-8000-000000000000",
    item_index=1,
    attempt=2,
    params=PARAMS,
    seed=41,
    width=72,
    height=64,
    model=ManifestModel("tiny", version="1", sha256=HASH),
    versions={"dreamforge": "0.1.0", "torch": "2.9"},
    device="a CPU",
)
FOREIGN = (
    "a hare <lora:grain:0.6>\nNegative prompt: fog\nSteps: 4, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 5, "
    "Size: 128x64, Model hash: 0123456789, Model: dreamy, Clip skip: 2"
)


@pytest.fixture
def url(state: ApiState, model: NewModel) -> Iterator[str]:
    assert model.name == "tiny"
    with served(state) as url:
        yield url


def _file(folder: Path, manifest: Manifest | None = FOX, *, format: str = "png", parameters: str = "") -> Path:
    path = folder / f"fox.{format}"
    path.write_bytes(
        encode(
            bytes(8 * 8 * 3),
            width=8,
            height=8,
            format=format,
            parameters=parameters or (parameters_text(manifest) if manifest else ""),
            manifest=manifest.as_text() if manifest else "",
        )
    )
    return path


class _Rerun:
    """The command in a process of its own, while the test plays the service's GPU."""

    def __init__(self, url: str, *arguments: str | Path) -> None:
        self._url = url
        self._process = subprocess.Popen(
            command("image", "rerun", *arguments), env=environment(url), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def job(self) -> dict[str, Any]:
        """The job, once it was posted."""
        wait_for(lambda: bool(self._jobs()) or self._process.poll() is not None, what="the job")
        (job,) = self._jobs()
        return job

    def end(self, code: int = 0) -> tuple[str, str]:
        """What it has printed, once it has ended with this exit code."""
        out, told = self._process.communicate(timeout=120)
        assert self._process.returncode == code, told
        return out, told

    def _jobs(self) -> list[dict[str, Any]]:
        return get(self._url, "/v1/jobs").json()["items"]


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_a_file_shows_how_it_was_made(url: str, tmp_path: Path, format: str) -> None:
    path = _file(tmp_path, format=format)
    shown = succeeded(url, "image", "show", path)
    for word in (
        "8 x 8 pixels",
        "a fox, in fog",
        "dpmpp_2m_karras",
        "tiny@1, sha256 abababababab",
        "a CPU",
        "torch 2.9",
    ):
        assert word in shown
    told = json.loads(succeeded(url, "image", "show", path, "--json"))
    assert (told["format"], told["width"], told["height"]) == (format, 8, 8)
    assert told["manifest"] == json.loads(FOX.as_text())
    assert told["parameters"] == parameters_text(FOX)


def test_a_file_of_another_program_shows_its_fields(url: str, tmp_path: Path) -> None:
    shown = succeeded(url, "image", "show", _file(tmp_path, None, parameters=FOREIGN))
    for word in ("a hare", "grain, weight 0.6", "DPM++ 2M Karras", "dreamy", "Clip skip"):
        assert word in shown


@pytest.mark.parametrize(
    ("manifest", "parameters"),
    [
        ("", f"a fox\nSteps: 1, Seed: {'9' * 400}, Size: 64x64"),
        ("", 'a fox\nSteps: 1, Seed: 2, Model: "\\ud800,"'),
        ('{"schema": 1, "params": {"prompt": "a fox\\ud800"}}', ""),
        (f'{{"schema": 1, "params": {{"prompt": "a fox", "seed": {"9" * 4000}}}}}', ""),
        ('{"schema": 1, "params": {"prompt": "a", "steps": 1e999}}', "a fox"),
        (f'{{"schema": 1, "params": {{"prompt": "a", "colours": {"[" * 450}{"]" * 450}}}}}', "a fox"),
    ],
    ids=["large seed", "surrogate field", "surrogate prompt", "large number", "infinity", "nested"],
)  # fmt: skip
def test_whatever_a_file_says_it_is_shown(url: str, tmp_path: Path, manifest: str, parameters: str) -> None:
    path = tmp_path / "fox.png"
    path.write_bytes(encode(bytes(3), width=1, height=1, format="png", parameters=parameters, manifest=manifest))
    assert "a fox" in succeeded(url, "image", "show", path)
    assert json.loads(succeeded(url, "image", "show", path, "--json"))["file"] == str(path)


def test_a_terminal_does_not_obey_what_a_file_says(url: str, tmp_path: Path) -> None:
    path = _file(tmp_path, None, parameters="a \x1b]0;title\x07\x1b[31mfox [red]\u202e\nSteps: 1, Seed: 2, Size: 3x4")
    shown = succeeded(url, "image", "show", path)
    assert "fox [red]" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)


def test_an_image_is_drawn_again_as_its_file_says(
    url: str, engine: Engine, object_store: ObjectStore, tmp_path: Path
) -> None:
    rerun = _Rerun(url, _file(tmp_path, format="webp"), "-n", "2", "-o", tmp_path / "again")
    job = rerun.job()
    assert job["params"] == {**PARAMS, "seed": 41, "preset": "balanced", "loras": [], "vae": None}
    assert (job["count"], job["model_id"]) == (2, get(url, "/v1/models").json()["items"][0]["id"])
    finish(engine, object_store.blobs(), count=2)
    out, told = rerun.end()
    assert [Path(line).read_bytes() for line in out.splitlines()] == [b"image 0", b"image 1"]
    assert {Path(line).parent for line in out.splitlines()} == {tmp_path / "again"}
    assert "!" not in told, "nothing is different"


def test_it_is_told_what_cannot_be_as_it_was(
    url: str, engine: Engine, object_store: ObjectStore, tmp_path: Path
) -> None:
    other = replace(FOX, model=ManifestModel("tiny", version="1", sha256="cd" * 32), params={**PARAMS, "colour": "red"})
    rerun = _Rerun(url, _file(tmp_path, other), "-o", tmp_path, "--json")
    assert "colour" not in rerun.job()["params"]
    finish(engine, object_store.blobs(), count=1)
    out, told = rerun.end()
    assert [file["seed"] for file in json.loads(out)["files"]] == [0]
    assert "! tiny@1 is not the model that the file was made with: its hash is another. Images may differ." in told
    assert "! colour is left out: the model does not know it." in told


def test_a_file_of_another_program_is_drawn_as_far_as_it_goes(
    url: str, engine: Engine, object_store: ObjectStore, tmp_path: Path
) -> None:
    a_model(engine, name="mine")
    rerun = _Rerun(url, _file(tmp_path, None, parameters=FOREIGN), "--model", "mine", "-o", tmp_path)
    params = rerun.job()["params"]
    assert {name: params[name] for name in ("prompt", "negative_prompt", "steps", "seed", "width", "scheduler")} == {
        "prompt": "a hare", "negative_prompt": "fog", "steps": 4, "seed": 5, "width": 128,
        "scheduler": "dpmpp_2m_karras",
    }  # fmt: skip
    finish(engine, object_store.blobs(), count=1)
    _, told = rerun.end()
    assert "! mine is not the model that the file was made with" in told
    assert "! Not repeated: Clip skip." in told
    assert "! Without the LoRA grain, which is not here." in told


def test_a_model_that_is_not_there_is_the_services_word(url: str, tmp_path: Path) -> None:
    gone = replace(FOX, model=ManifestModel("gone", version="3", sha256="cd" * 32))
    _, told = _Rerun(url, _file(tmp_path, gone), "-o", tmp_path).end(1)
    assert "unknown_model" in told
    assert len(told.strip().splitlines()) == 1


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack("!I", len(content)) + kind + content + struct.pack("!I", zlib.crc32(kind + content))


def _bomb() -> bytes:
    header = struct.pack("!IIBBBBB", 13_000, 13_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(1000)))


@pytest.mark.parametrize("verb", ["show", "rerun"])
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.txt", b"hello, world\n", "notes.txt is no PNG, JPEG or WebP that can be read."),
        ("empty.png", b"", "empty.png is no PNG, JPEG or WebP that can be read."),
        ("cut.png", encode(os.urandom(12288), width=64, height=64, format="png")[:900], "is no PNG, JPEG or WebP"),
        ("bomb.png", _bomb(), "bomb.png has more than 64 megapixels."),
        ("plain.png", encode(bytes(12), width=2, height=2, format="png"), "plain.png does not say how it was made."),
        ("folder", None, "folder: Is a directory."),
        ("gone.png", None, "gone.png: No such file or directory."),
    ],
    ids=["text", "empty", "truncated", "bomb", "plain", "folder", "missing"],
)  # fmt: skip
def test_a_file_that_says_nothing_ends_the_command_with_one_sentence(
    tmp_path: Path, verb: str, name: str, content: bytes | None, said: str
) -> None:
    if name == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    # Nobody listens there: the file is looked at first.
    result = ran("http://127.0.0.1:1", "image", verb, tmp_path / name)
    assert (result.returncode, result.stdout) == (1, "")
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
