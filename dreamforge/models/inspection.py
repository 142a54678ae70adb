"""What a file or folder is that somebody calls a model, and whether it can be trusted. Nothing in it is run."""

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dreamforge.errors import InvalidRequest, ModelCorrupt
from dreamforge.models.component_configs import MODEL_INDEX, read_configs
from dreamforge.models.component_weights import pickles_in
from dreamforge.models.descriptor import ModelFile
from dreamforge.models.files import (
    FoundFile,
    OnBytes,
    checkpoint_hash,
    find_file,
    find_files,
    hash_files,
    hash_with_tensors,
)
from dreamforge.models.pipeline_folder import FolderFindings, check_configuration, read_pipeline, read_vae_folder
from dreamforge.models.safetensors_header import SafetensorsHeader, read_header
from dreamforge.models.weights import Expected, Kind, Weights, incompatible, weights_of

LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers calls a LoRA's weights."""

CONFIG_PATH = "config_path"
"""Of a model's metadata: the folder that describes a single file's components; from the model's own when relative."""

_SUFFIX = ".safetensors"
_TOLD = (
    "modelspec.architecture",
    "modelspec.prediction_type",
    "modelspec.title",
    "ss_base_model_version",
    "ss_network_module",
)
_LONGEST_TOLD = 200
_NATIVE_EDGE = 1024
_WORDS = {Kind.CHECKPOINT: "a checkpoint", Kind.LORA: "a LoRA", Kind.VAE: "a VAE"}


class Layout(StrEnum):
    """How a model lies on the disk: as diffusers saves it, or in one file."""

    FOLDER = "folder"
    FILE = "file"


@dataclass(frozen=True)
class Inspection:
    """What was found at ``path``, which is absolute.

    ``checkpoint_hash``: the file's sha256, of a folder the one of ``files.checkpoint_hash``. ``edge``: pixels of the
    images that a checkpoint was trained on. ``metadata``: for the registry; ``warnings``: for a person.
    """

    path: Path
    layout: Layout
    weights: Weights
    files: tuple[ModelFile, ...]
    checkpoint_hash: str
    edge: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    warnings: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """What it is to a job."""
        return self.weights.kind


@dataclass(frozen=True)
class _Hashing:
    known: Mapping[Path, ModelFile]
    on_bytes: OnBytes | None


def inspect(
    path: Path,
    *,
    kind: Kind | None = None,
    config: Path | None = None,
    known: Mapping[Path, ModelFile] = MappingProxyType({}),
    on_bytes: OnBytes | None = None,
) -> Inspection:
    """Read and check the model at ``path``: a safetensors file, a pipeline's folder, or one with a VAE or a LoRA.

    ``config`` is a folder in diffusers' layout, weights not needed, whose sizes a single file is held against; without
    it, SDXL 1.0's. Every byte is read once, for the hashes; ``on_bytes`` is told how far. ``known``, by absolute path,
    are files that were hashed just now: what they hold is not read again, but of a LoRA, which has a second hash.

    Raises ``ModelCorrupt`` for what is broken, unsafe or changes meanwhile, ``ModelIncompatible`` for what is of
    another kind or family, ``InvalidRequest`` for a ``config`` beside a folder that has its own, and ``OSError``.
    """
    path = path.absolute()
    hashing = _Hashing(known=known, on_bytes=on_bytes)
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode) and (path / MODEL_INDEX).exists():
        if config is not None:
            raise InvalidRequest(f"{path.name} has a configuration of its own: give none with it.")
        # What changes after this is noticed.
        found = find_files(path)
        return _folder(path, found, read_pipeline(path), kind=kind, hashing=hashing)
    expected = Expected()
    if config is not None:
        expected = read_configs(config).expected()
        check_configuration(config)
    if not stat.S_ISDIR(mode):
        return _file(path, kind=kind, config=config, expected=expected, hashing=hashing)
    if (path / LORA_FILE).exists():
        return _file(path / LORA_FILE, kind=kind, config=config, expected=expected, hashing=hashing)
    if (path / "config.json").exists():
        found = find_files(path)
        return _folder(path, found, read_vae_folder(path, expected=expected), kind=kind, hashing=hashing)
    raise _no_model(path)


def _folder(
    path: Path, found: Sequence[FoundFile], findings: FolderFindings, *, kind: Kind | None, hashing: _Hashing
) -> Inspection:
    _check_kind(findings.weights, kind, name=path.name)
    files = hash_files(found, known=hashing.known, on_bytes=hashing.on_bytes)
    more = {"variant": findings.variant, "scaling_factor": findings.scaling_factor}
    told = {**findings.weights.told(), **{name: value for name, value in more.items() if value is not None}}
    return Inspection(
        path=path,
        layout=Layout.FOLDER,
        weights=findings.weights,
        files=files,
        checkpoint_hash=checkpoint_hash(files),
        edge=findings.edge,
        metadata={"layout": Layout.FOLDER.value, "weights": told},
        warnings=findings.warnings,
    )


def _file(path: Path, *, kind: Kind | None, config: Path | None, expected: Expected, hashing: _Hashing) -> Inspection:
    found = find_file(path)
    header = read_header(path)
    if path.suffix != _SUFFIX:
        words = f"{path.name} is a safetensors file by another name: rename it, so that it ends in {_SUFFIX}."
        raise ModelCorrupt(words, details={"file": path.name, "reason": "name"})
    weights = weights_of(header, name=path.name, expected=expected)
    _check_kind(weights, kind, name=path.name)
    metadata: dict[str, Any] = {"layout": Layout.FILE.value, "weights": weights.told(), **_told(header)}
    if config is not None:
        metadata[CONFIG_PATH] = str(config.absolute())
    if weights.kind is Kind.LORA:
        file, metadata["tensor_hash"] = hash_with_tensors(
            found, data_offset=header.data_offset, on_bytes=hashing.on_bytes
        )
    else:
        (file,) = hash_files([found], known=hashing.known, on_bytes=hashing.on_bytes)
    edge = _NATIVE_EDGE if config is None else read_configs(config).edge
    return Inspection(
        path=path,
        layout=Layout.FILE,
        weights=weights,
        files=(file,),
        checkpoint_hash=file.sha256,
        edge=edge if weights.kind is Kind.CHECKPOINT else None,
        metadata=metadata,
    )


def _check_kind(weights: Weights, kind: Kind | None, *, name: str) -> None:
    if kind not in {None, weights.kind}:
        raise incompatible(name, f"is {_WORDS[weights.kind]}, not {_WORDS[Kind(kind)]}.")


def _told(header: SafetensorsHeader) -> dict[str, Any]:
    """What the file says of itself, short and in characters that can be shown and stored."""
    said = {key: header.metadata[key] for key in _TOLD if key in header.metadata}
    clean = {key: "".join(filter(str.isprintable, value))[:_LONGEST_TOLD] for key, value in said.items()}
    return {"header": clean} if clean else {}


def _no_model(path: Path) -> ModelCorrupt:
    details = {"file": path.name, "reason": "no_model"}
    if files := sorted(path.glob(f"*{_SUFFIX}")):
        return ModelCorrupt(f"{path.name} is no model's folder. Name the file: {files[0]}", details=details)
    if pickles := pickles_in(path):
        words = f"{path.name} has pickles, as {pickles[0].name}, which are never loaded here, and no safetensors file."
        return ModelCorrupt(words, details={**details, "reason": "pickle"})
    words = f"{path.name} is no model in diffusers' layout, with a {MODEL_INDEX} at its top, and no safetensors file."
    return ModelCorrupt(words, details=details)
