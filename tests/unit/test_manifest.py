"""The `dreamforge` object: whole, and read as far as it is understood."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamforge.images.manifest import Manifest, ManifestLora, ManifestModel, read_manifest
from tests.unit.manifests import FOX, HASH, MANIFESTS

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_NAMES = sorted(FOX.as_json())


@given(MANIFESTS)
def test_a_manifest_comes_back_as_it_was(made: Manifest) -> None:
    assert read_manifest(made.as_text()) == made


def test_it_has_these_names() -> None:
    content = json.loads(replace(FOX, loras=(ManifestLora("grain", 0.6),)).as_text())
    assert set(content) == {
        "schema", "job_id", "item_index", "attempt", "type", "params", "seed", "width", "height", "model", "loras",
        "vae", "versions", "device", "dtype", "preset", "batch_size", "rung", "memory_savings",
    }  # fmt: skip
    assert content["schema"] == 1
    assert set(content["model"]) == {"name", "version", "sha256", "air", "model_version_id"}
    assert content["loras"][0]["name"] == "grain"
    assert content["params"] == FOX.params


def test_a_newer_one_is_read_as_far_as_it_is_understood() -> None:
    newer: dict[str, Any] = FOX.as_json() | {"schema": 7, "colour": "red"}
    newer["model"] |= {"licence": "none"}
    assert read_manifest(json.dumps(newer)) == replace(FOX, schema=7)


def test_what_the_first_versions_wrote_side_by_side_is_understood() -> None:
    """The `dreamforge` chunk of 0.1.0 before its manifest."""
    content = {
        "prompt": "a fox", "negative_prompt": "", "seed": 42, "scheduler": "euler", "steps": 3, "guidance_scale": 5.0,
        "width": 64, "height": 72, "checkpoint_hash": HASH, "job_id": "0192f0c1", "item_index": 1, "version": "0.1.0",
        "memory_savings": ["vae_tiling"], "model": "sdxl-tiny",
    }  # fmt: skip
    assert read_manifest(json.dumps(content)) == Manifest(
        schema=0,
        job_id="0192f0c1",
        item_index=1,
        params={
            "prompt": "a fox", "negative_prompt": "", "seed": 42, "scheduler": "euler", "steps": 3,
            "guidance_scale": 5.0, "width": 64, "height": 72,
        },
        seed=42,
        width=64,
        height=72,
        model=ManifestModel("sdxl-tiny", sha256=HASH),
        versions={"dreamforge": "0.1.0"},
        memory_savings=("vae_tiling",),
    )  # fmt: skip


@pytest.mark.parametrize(
    "other",
    ["[1]", "3", '"x"', "null", "", "{", "{}", '{"a": 1}', '{"schema": 1, "seed": NaN}', '{"schema": 1, "params": []}',
     '{"schema": 1, "model": {"version": "1"}}', "[" * 100_000, '{"schema": 1, "seed": 1' + "0" * 5000 + "}",
     '{"job_id": "x", "model": {}}', '{"schema": 1, "params": {"steps": 1e999}}',
     '{"schema": 1, "params": {"prompt": ' + "[" * 450 + "]" * 450 + "}}",
     '{"schema": 1, "loras": [{"name": "x", "weight": "Infinity"}]}',
     '{"schema": 1, "loras": [{"name": "x", "weight": 1' + "0" * 400 + "}]}"],
)  # fmt: skip
def test_what_is_no_manifest_is_none(other: str) -> None:
    assert read_manifest(other) is None


def test_what_no_text_may_hold_is_replaced() -> None:
    read = read_manifest('{"schema": 1, "params": {"prompt": "a \\ud800 fox\\u0000"}, "device": "\\udfff"}')
    assert read is not None
    assert (read.params, read.device) == ({"prompt": "a \ufffd fox\ufffd"}, "\ufffd")


@given(st.dictionaries(st.sampled_from(_NAMES), _JSON) | _JSON)
def test_anything_is_a_manifest_or_none(content: Any) -> None:
    read = read_manifest(json.dumps(content))
    assert read is None or json.dumps(read.as_json(), allow_nan=False, ensure_ascii=False).encode()
