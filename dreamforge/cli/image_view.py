"""What an image file says, as a person reads it. Pure."""

from collections.abc import Iterator
from typing import Any

from dreamforge.cli.image_models import on_civitai
from dreamforge.images.manifest import Manifest, ManifestLora, ManifestModel
from dreamforge.images.parameters_reading import parse_parameters
from dreamforge.images.reading import ReadMetadata

_HASH_LENGTH = 12
_FIRST = ("prompt", "negative_prompt", "width", "height", "steps", "guidance_scale", "scheduler")


def rows_of(read: ReadMetadata) -> list[tuple[str, str]]:
    """Names and values, of our manifest or else of the `parameters` text. What there is not is left out."""
    found = _of_manifest(read.manifest) if read.manifest else _of_parameters(read.parameters or "")
    return [(name, value) for name, value in found if value]


def _of_manifest(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for name, value in sorted(manifest.params.items(), key=lambda param: _place(param[0])):
        # These are told below, with what is known of them besides.
        if name not in {"seed", "preset", "loras", "vae"}:
            yield name.replace("_", " "), _told(value)
    yield "seed", _told(manifest.seed)
    if manifest.model:
        name = "@".join(filter(None, [manifest.model.name, manifest.model.version]))
        yield "model", _named(name, manifest.model)
    for lora in manifest.loras:
        yield "LoRA", _lora(lora)
    if manifest.vae:
        yield "VAE", _with_hash(manifest.vae.name, manifest.vae.sha256)
    if manifest.preset:
        yield "preset", " ".join(filter(None, [manifest.preset.name, _told(manifest.preset.version)]))
    yield "memory savings", ", ".join(saving.replace("_", " ") for saving in manifest.memory_savings)
    yield "images drawn at once", _told(manifest.batch_size) if manifest.batch_size != 1 else ""
    yield "job", _told(manifest.job_id)
    yield "image", _told(manifest.item_index)
    yield "attempt", _told(manifest.attempt)
    yield "device", " ".join(filter(None, [manifest.device, manifest.dtype]))
    yield "versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())


def _place(name: str) -> tuple[int, str]:
    # PostgreSQL keeps no order of its own.
    return (_FIRST.index(name), name) if name in _FIRST else (len(_FIRST), name)


def _of_parameters(text: str) -> Iterator[tuple[str, str]]:
    read = parse_parameters(text)
    yield "prompt", read.prompt
    yield "negative prompt", read.negative_prompt
    for lora in read.loras:
        yield "LoRA", f"{lora.name}, weight {lora.weight:g}"
    yield from read.fields.items()


def _lora(lora: ManifestLora) -> str:
    return _named(f"{lora.name}, weight {lora.weight:g}", lora)


def _named(name: str, model: ManifestModel | ManifestLora) -> str:
    return ", ".join(filter(None, [_with_hash(name, model.sha256), on_civitai(model.air)]))


def _with_hash(name: str, sha256: str | None) -> str:
    return f"{name}, sha256 {sha256[:_HASH_LENGTH]}…" if sha256 else name


def _told(value: Any) -> str:
    return "" if value is None else str(value)
