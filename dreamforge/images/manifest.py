"""The `dreamforge` object of an image: a whole manifest of how it was made.

Written as JSON. What an older version wrote, or a newer one, is read as far as it is understood.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from dreamforge.jobs.storable import storable

SCHEMA = 1


@dataclass(frozen=True)
class ManifestModel:
    """The model it was drawn with. ``sha256`` is the checkpoint's, in hex.

    ``air`` (`urn:air:…`) and ``model_version_id`` are Civitai's names for it, where they are known.
    """

    name: str
    version: str | None = None
    sha256: str | None = None
    air: str | None = None
    model_version_id: int | None = None


@dataclass(frozen=True)
class ManifestLora:
    """A LoRA that was added with a weight. ``tensor_hash`` is the sha256 of its tensors alone, in hex."""

    name: str
    weight: FiniteFloat = 1.0
    sha256: str | None = None
    tensor_hash: str | None = None
    version: str | None = None
    air: str | None = None
    model_version_id: int | None = None


@dataclass(frozen=True)
class ManifestVae:
    """A VAE that took the place of the model's own."""

    name: str
    sha256: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class ManifestPreset:
    """The preset, and the version of what it stands for."""

    name: str
    version: int | None = None


@dataclass(frozen=True)
class Manifest:
    """How one image was made.

    ``params`` are the job's, resolved and whole, but the ``seed`` is the image's own; ``versions`` map packages to
    versions; ``rung`` and ``memory_savings`` say what the step did without for want of GPU memory. What is None was
    not known.
    """

    schema: int = SCHEMA
    job_id: str | None = None
    item_index: int | None = None
    attempt: int | None = None
    type: str = "generate"
    params: dict[str, Any] = field(default_factory=dict[str, Any])
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    model: ManifestModel | None = None
    loras: tuple[ManifestLora, ...] = ()
    vae: ManifestVae | None = None
    versions: dict[str, str] = field(default_factory=dict[str, str])
    device: str | None = None
    dtype: str | None = None
    preset: ManifestPreset | None = None
    batch_size: int | None = None
    rung: int = 0
    memory_savings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The object."""
        return asdict(self)

    def as_text(self) -> str:
        """The object as the text that is written."""
        return json.dumps(self.as_json(), ensure_ascii=False)


_MANIFEST = TypeAdapter(Manifest)
_FIRST_PARAMS = ("prompt", "negative_prompt", "scheduler", "steps", "guidance_scale", "width", "height")


def read_manifest(text: str) -> Manifest | None:
    """The manifest in a text; None when it is none. Names that are not known are passed over.

    What neither a service nor a terminal could take is none, or is left out; see ``storable``.
    """
    try:
        content: Any = storable(json.loads(text, parse_constant=_refuse))
        if isinstance(content, dict) and "schema" not in content:
            content = _of_first_form(content)
        return _MANIFEST.validate_python(content)
    except (ValueError, OverflowError, RecursionError, ValidationError):
        return None


def _of_first_form(content: dict[str, Any]) -> dict[str, Any]:
    """What was written before the manifest had a schema: everything side by side, the model's name as `model`."""
    if "job_id" not in content or not isinstance(content.get("model"), str):
        raise ValueError("no object of ours")
    kept = ("job_id", "item_index", "seed", "width", "height", "memory_savings")
    return {
        **{name: content[name] for name in kept if name in content},
        "schema": 0,
        "params": {name: content[name] for name in (*_FIRST_PARAMS, "seed") if name in content},
        "model": {"name": content["model"], "sha256": content.get("checkpoint_hash")} if content["model"] else None,
        "versions": {"dreamforge": content["version"]} if "version" in content else {},
    }


def _refuse(name: str) -> None:
    # Python's JSON knows NaN and Infinity; no other does.
    raise ValueError(name)
