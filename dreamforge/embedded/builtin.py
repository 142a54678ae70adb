"""The built-in model: where nothing is installed, a tiny SDXL with random weights makes the service work at once."""

import contextlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dreamforge.errors import ModelCorrupt
from dreamforge.installation.model_import import registration
from dreamforge.models.descriptor import ModelDescriptor, SizeRange, sdxl_schema
from dreamforge.models.files import DESCRIPTOR_NAME, checkpoint_hash, hash_folder
from dreamforge.models.pipeline_folder import read_pipeline
from dreamforge.settings import Settings
from dreamforge.store.engine import open_engine
from dreamforge.store.models import ModelRegistry

NAME = "sdxl-tiny"
VERSION = "1"
SOURCE_URI = f"builtin:{NAME}"
NOTICE = (
    "sdxl-tiny has random weights: it draws noise, to show that everything works. "
    "To draw pictures, download a real SDXL model: dreamforge model download "
    "hf:stabilityai/stable-diffusion-xl-base-1.0 (7 GB), or take one from the disk: dreamforge model import PATH"
)
_SIZE = SizeRange(least=64, most=512, default=64)


def install_if_empty(settings: Settings, database_url: str) -> str | None:
    """Install `sdxl-tiny` where no checkpoint is installed, and rebuild its files where they are gone.

    One that an older version has registered is told anew: its parameters' schema is the one of the running code, its
    place the one of the settings. A model of this name from elsewhere is nobody's business here.
    Returns the notice to show when the built-in model is what jobs will find that name none.
    """
    engine = open_engine(database_url, application="dreamforge-up", pool_size=1)
    try:
        registry = ModelRegistry(engine=engine)
        source = registry.source_uri(name=NAME, version=VERSION)
        is_installed = registry.is_installed(name=NAME, version=VERSION)
        if source not in {None, SOURCE_URI} or (not is_installed and registry.has_any_installed()):
            return None
        folder = settings.models_root / "sdxl" / f"{NAME}@{VERSION}"
        is_new = not (folder / DESCRIPTOR_NAME).is_file()
        if is_new:
            _build(folder)
        model = registration(describe(folder), folder)
        if source is None:
            registry.register(model)
        else:
            registry.refresh(model, with_files=is_new)
        return NOTICE if registry.is_default(name=NAME, version=VERSION) else None
    finally:
        engine.dispose()


def describe(folder: Path) -> ModelDescriptor:
    """The descriptor of the built model."""
    files = hash_folder(folder)
    return ModelDescriptor(
        name=NAME,
        version=VERSION,
        kind="sdxl",
        source_uri=SOURCE_URI,
        checkpoint_hash=checkpoint_hash(files),
        parameters_schema=sdxl_schema(size=_SIZE, default_steps=4),
        capabilities=("generate",),
        files=files,
        metadata={"description": NOTICE, **_weights_of(folder)},
    )


def _weights_of(folder: Path) -> dict[str, Any]:
    """What was found when it was built: damage is not what the model is. Older builds do not say."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return {"weights": json.loads((folder / DESCRIPTOR_NAME).read_text())["metadata"]["weights"]}
    return {}


def _build(folder: Path) -> None:
    # A process of its own: torch stays out of this one.
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "dreamforge.runners.tiny", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ModelCorrupt(f"The built-in model could not be built: {result.stderr.strip()[-500:]}")
    built = describe(folder)
    built = replace(built, metadata={**built.metadata, "weights": read_pipeline(folder).weights.told()})
    (folder / DESCRIPTOR_NAME).write_text(json.dumps(asdict(built), indent=2))
