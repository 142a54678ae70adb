"""The tokenizers of models that come as one file: CLIP's, made from what is published of them."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dreamforge.runners.vocabulary import END, SDXL_BASE, START, clip_merges, tokenizer, vocabulary

CAT = [49406, 320, 1125, 539, 320, 2368, 49407]
PROMPTS = [
    "a photo of a cat",
    "a cat!",
    "É 狐 👩‍👩‍👧",
    " Two  spaces\n",
    "it's 1234",
    "<|endoftext|> a <|STARTOFTEXT|>",
    "",
]


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_a_photo_of_a_cat_has_the_ids_that_clip_knows(name: str) -> None:
    assert tokenizer(SDXL_BASE / name)("a photo of a cat").input_ids == CAT


@pytest.mark.parametrize(("name", "pad"), [("tokenizer", 49407), ("tokenizer_2", 0)])
def test_each_tokenizer_of_sdxl_fills_up_with_its_own_token(name: str, pad: int) -> None:
    ids = tokenizer(SDXL_BASE / name)("a photo of a cat", padding="max_length", truncation=True).input_ids
    assert ids == CAT + [pad] * (77 - len(CAT))


def test_the_vocabulary_is_of_bytes_merges_and_two_specials() -> None:
    merges = clip_merges()
    words = vocabulary(merges)
    assert (len(merges), len(words)) == (48_894, 49_408)
    assert (words["!"], words["!</w>"], words[START], words[END]) == (0, 256, 49406, 49407)
    assert sorted(words.values()) == list(range(49_408))


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_it_is_what_a_folder_with_the_same_vocabulary_gives(name: str, tmp_path: Path) -> None:
    merges = clip_merges()
    for file in (SDXL_BASE / name).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary(merges)))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    ours, of_folder = tokenizer(SDXL_BASE / name), tokenizer(tmp_path)
    settings: dict[str, Any] = {"padding": "max_length", "max_length": 77, "truncation": True}
    assert ours(PROMPTS, **settings).input_ids == of_folder(PROMPTS, **settings).input_ids


def test_a_wheel_brings_the_configurations_and_the_merges(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    ours = {path.relative_to(root).as_posix() for path in SDXL_BASE.rglob("*") if path.is_file()}
    assert len(ours) == 12
    assert ours <= packed
