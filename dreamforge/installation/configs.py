"""The configuration that somebody gives with a single file: it goes with the model, to every node."""

import shutil
from dataclasses import replace
from pathlib import Path

from dreamforge.errors import InvalidRequest
from dreamforge.models.files import find_files, hash_files
from dreamforge.models.inspection import CONFIG_PATH, Inspection, Layout
from dreamforge.models.shelf import sync_file

_FOLDER = "config"
_SUFFIXES = frozenset({".json", ".txt"})
_LARGEST = 32 * 1024 * 1024
"""Bytes of one file. The longest that SDXL has is a tokenizer of 2 MB."""


def take_in(config: Path, above: Path) -> Path:
    """Copy what describes components into a folder below ``above``, which it returns; weights stay where they are.

    Raises ``InvalidRequest`` for a folder that describes nothing, and ``OSError``.
    """
    target = above / _FOLDER
    for file in find_files(config):
        if file.path.suffix in _SUFFIXES and file.size <= _LARGEST:
            copied = target / file.name
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.path, copied)
            sync_file(copied)
    if not target.exists():
        raise InvalidRequest(f"{config.name} has no configuration: no .json file.")
    return target


def with_config(found: Inspection, config: Path) -> Inspection:
    """The findings with the files of its configuration, which lies beside the model's file."""
    if found.layout is not Layout.FILE:
        raise InvalidRequest("A model in diffusers' layout has a configuration of its own: give none with it.")
    named = [replace(file, name=f"{config.name}/{file.name}") for file in find_files(config)]
    return replace(
        found, files=(*found.files, *hash_files(named)), metadata={**found.metadata, CONFIG_PATH: config.name}
    )
