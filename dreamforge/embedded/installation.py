"""A model of the user's own, a folder as diffusers saves it, made known to the service where it lies."""

import json
import re
from pathlib import Path

from uuid6 import uuid7

from dreamforge.embedded.trouble import StackError
from dreamforge.models.descriptor import SizeRange, sdxl_schema
from dreamforge.models.files import checkpoint_hash, hash_folder
from dreamforge.store.engine import open_engine
from dreamforge.store.models import ModelRegistry, NewModel, NewModelFile

_PIPELINE = "StableDiffusionXLPipeline"
_SIZE = SizeRange(least=64, most=2048, default=1024)
_STEPS = 30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def add_model(folder: Path, database_url: str, *, name: str, version: str, is_default: bool) -> NewModel:
    """Register the SDXL pipeline in ``folder``, which must be at this path on every GPU node. Nothing is copied.

    Reads every file once, for its hash. Raises ``StackError`` for what is no such folder, and for a name that is taken.
    """
    folder = folder.absolute()
    for word in (name, version):
        if not _NAME.fullmatch(word):
            raise StackError(f"{word!r} is no name: letters, digits, dots, dashes and underscores, 100 at most.")
    _require_sdxl(folder)
    engine = open_engine(database_url, application="dreamforge-models", pool_size=1)
    try:
        registry = ModelRegistry(engine=engine)
        if registry.source_uri(name=name, version=version) is not None:
            raise StackError(f"There is a model {name}@{version} already. Choose another --name or --version.")
        model = _registration(folder, name=name, version=version)
        registry.register(model)
        if is_default:
            registry.make_default(model.id)
        return model
    finally:
        engine.dispose()


def _require_sdxl(folder: Path) -> None:
    try:
        pipeline = json.loads((folder / "model_index.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StackError(
            f"{folder} is no model in diffusers' layout, with a model_index.json at its top. "
            "A single .safetensors file is turned into one by diffusers' from_single_file() and save_pretrained()."
        ) from error
    if pipeline != _PIPELINE:
        raise StackError(f"{folder} is a {pipeline}; Dream Forge draws with a {_PIPELINE}.")
    if not list(folder.glob("unet/*.safetensors")):
        raise StackError(f"{folder}/unet has no weights in safetensors files, the one kind that is read.")


def _registration(folder: Path, *, name: str, version: str) -> NewModel:
    files = hash_folder(folder)
    return NewModel(
        id=uuid7(),
        name=name,
        kind="sdxl",
        version=version,
        checkpoint_hash=checkpoint_hash(files),
        source_uri=folder.as_uri(),
        local_path=str(folder),
        parameters_schema=sdxl_schema(size=_SIZE, default_steps=_STEPS),
        capabilities=("generate",),
        metadata={},
        files=tuple(NewModelFile(path=file.path, size=file.size, sha256=file.sha256) for file in files),
    )
