"""Names of files that strangers gave."""

from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamforge.errors import DownloadCorrupt
from dreamforge.models.file_names import KEPT, model_name, safe_path


@pytest.mark.parametrize(
    "path",
    [
        "model.safetensors",
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "tokenizer/merges.txt",
        "a/b/c/config.json",
        "模型 v1.0 (final).safetensors",
        "console.json",
        "x" * 180 + ".json",
    ],
)
def test_an_honest_name_stays_as_it_is(path: str) -> None:
    assert safe_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "../x.json",
        "a/../../x.json",
        "a/./x.json",
        "a//x.json",
        "/etc/x.json",
        "//server/x.json",
        "a\\..\\x.json",
        "\\\\server\\x.json",
        "C:/x.json",
        "C:x.json",
        "x.json:stream.json",
        "x.json\0.json",
        "a\n.json",
        "a\x1b[2J.json",
        "a\u202egpj.json",
        "a\u2028.json",
        "\ud800.json",
        "con.json",
        "a/NUL.txt",
        "com1.json",
        "lpt¹.safetensors",
        "a./x.json",
        "a /x.json",
        " x.json",
        ".hidden.json",
        ".git/x.json",
        "a<b.json",
        "a|b.json",
        "a?.json",
        "x" * 201 + ".json",
        "a/b/c/d/e.json",
        "x.ckpt",
        "pytorch_model.bin",
        "x.PT",
        "x.pkl",
        "x.py",
        "x.so",
        "x.html",
        "x.safetensors.index",
        "x.SAFETENSORS",
        "json",
        "model.safetensors/",
    ],
)
def test_any_other_is_refused_and_shown_harmlessly(path: str) -> None:
    with pytest.raises(DownloadCorrupt) as caught:
        safe_path(path)
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()


def test_a_pickle_is_called_one() -> None:
    with pytest.raises(DownloadCorrupt, match=r"x\.ckpt.*is a pickle"):
        safe_path("x.ckpt")


_PIECES = st.sampled_from(["..", ".", "a", "b.json", "", "/", "\\", "C:", "\0", "con", " ", "~", "\n", ".json", "é"])


@given(st.lists(_PIECES, max_size=8).map("".join) | st.text(max_size=60).map(lambda text: f"{text}.json"))
def test_what_is_accepted_stays_below_the_folder_on_every_system(text: str) -> None:
    try:
        path = safe_path(text)
    except DownloadCorrupt:
        return
    root = Path("/models/x")
    assert (root / path).resolve().is_relative_to(root)
    assert (root / path).relative_to(root).as_posix() == path
    windows = PureWindowsPath(path)
    assert not windows.anchor
    assert windows.as_posix() == path
    assert path.endswith(KEPT)


@given(st.text(max_size=150))
def test_a_model_always_has_a_name(text: str) -> None:
    name = model_name(text)
    assert 0 < len(name) <= 100
    assert name.isascii()
    assert model_name(name) == name


def test_a_name_keeps_what_may_stand_in_one() -> None:
    assert model_name("Juggernaut XL (v9) / RunDiffusion") == "Juggernaut-XL-v9-RunDiffusion"
