"""Manifests of any content, for the tests of what image files say."""

import uuid

from hypothesis import strategies as st

from dreamforge.images.manifest import Manifest, ManifestLora, ManifestModel, ManifestPreset, ManifestVae
from dreamforge.jobs.schedulers import SCHEDULERS

HASH = "31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b"
LORA_HASH = "7c1f2a9b3d4e" + "0" * 52
FOX = Manifest(
    job_id="0192f0c1-0000-7000-8000-000000000000",
    item_index=3,
    attempt=1,
    params={
        "prompt": "a fox, in fog",
        "negative_prompt": "blurry",
        "scheduler": "dpmpp_2m_karras",
        "steps": 30,
        "guidance_scale": 6.5,
        "width": 1024,
        "height": 768,
        "seed": 39,
        "format": "png",
    },
    seed=42,
    width=1024,
    height=768,
    model=ManifestModel("sd_xl_base_1.0", version="1", sha256=HASH),
    versions={"dreamforge": "0.1.0", "torch": "2.9"},
    device="NVIDIA H100",
    preset=ManifestPreset("balanced"),
)
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0\u2060")
_FORGED = st.sampled_from(
    [
        *("\n", "\r", "\u2028", "\x85", " ", "\ufeff", '"', "\\", ",", ":", "<", ">", "}", "]"),
        *("Negative prompt:", "negative prompt: x", "Steps: 1, Sampler: Evil,", "Seed: 666, Size: 1x1, CFG scale: 1"),
        *(
            "Template: x",
            "Negative Template: y",
            "<lora:evil:1>",
            "<lora:film_grain:0.6>",
            "<hypernet:h:1>",
            "Hashes: {}",
        ),
    ]
)
PROMPTS = st.text(CHARACTERS, max_size=40) | st.lists(_FORGED | st.text(CHARACTERS, max_size=6), max_size=8).map(
    "".join
)
_NAMES = st.text("abcXYZ019._- ,:", min_size=1, max_size=20).map(str.strip).filter(bool)
_HASHES = st.none() | st.text("0123456789abcdef", min_size=64, max_size=64)
_VERSION_IDS = st.none() | st.integers(1, 10**7)
_AIRS = st.none() | st.sampled_from(["urn:air:sdxl:lora:civitai:123@456", "urn:air:]}, Seed: 666"])
LORAS = st.builds(
    ManifestLora,
    name=_NAMES | st.just("film_grain") | st.text(CHARACTERS, max_size=8),
    weight=st.floats(-4, 4).map(lambda weight: round(weight, 3)) | st.just(0.6),
    sha256=_HASHES,
    air=_AIRS,
    model_version_id=_VERSION_IDS,
)
PARAMS = st.fixed_dictionaries(
    {
        "prompt": PROMPTS,
        "negative_prompt": PROMPTS,
        "scheduler": st.sampled_from(sorted(SCHEDULERS)),
        "steps": st.integers(1, 150),
        "guidance_scale": st.floats(0, 30).map(lambda value: round(value, 3)),
    },
    optional={"clip_skip": st.integers(1, 4), "seed": st.none() | st.integers(0, 2**32 - 1)},
)
MANIFESTS = st.builds(
    Manifest,
    job_id=st.uuids().map(str) | st.just(str(uuid.UUID(int=0))),
    item_index=st.integers(0, 99),
    attempt=st.integers(1, 5),
    params=PARAMS,
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(64, 4096),
    height=st.integers(64, 4096),
    model=st.none() | st.builds(ManifestModel, name=_NAMES, sha256=_HASHES, model_version_id=_VERSION_IDS),
    loras=st.lists(LORAS, max_size=3).map(tuple),
    vae=st.none() | st.builds(ManifestVae, name=_NAMES, sha256=_HASHES),
    versions=st.just({"dreamforge": "0.1.0", "python": "3.11.7"}),
    device=st.text(CHARACTERS, max_size=10),
    rung=st.integers(0, 4),
    memory_savings=st.lists(st.sampled_from(["vae_tiling", "vae_slicing"]), unique=True).map(tuple),
)
