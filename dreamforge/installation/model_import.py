"""A model of the user's own, made known to the service where it lies. Nothing is copied, and nothing written there."""

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from uuid6 import uuid7

from dreamforge.errors import InvalidRequest
from dreamforge.models.description import describe
from dreamforge.models.descriptor import ModelDescriptor
from dreamforge.models.inspection import Inspection, inspect
from dreamforge.models.weights import Kind
from dreamforge.store.engine import open_engine
from dreamforge.store.models import ModelRegistry, NewModel, NewModelFile, Registered

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LONGEST_NAME = 100


@dataclass(frozen=True)
class ImportRequest:
    """What to import, and as what.

    ``name``: the file's or folder's when it is None. ``kind`` and ``config``: see ``inspection.inspect``.
    ``as_default``: see ``ModelRegistry.register``.
    """

    path: Path
    name: str | None = None
    version: str = "1"
    kind: Kind | None = None
    config: Path | None = None
    as_default: bool | None = None


@dataclass(frozen=True)
class Imported:
    """A model that the service knows from now on."""

    descriptor: ModelDescriptor
    inspection: Inspection
    registered: Registered


def import_model(
    wanted: ImportRequest, database_url: str, *, on_bytes: Callable[[int, int], None] | None = None
) -> Imported:
    """Register the model, which must be at this path on every GPU node.

    Reads every byte once, for its hash, and tells ``on_bytes`` how many of how many it has read. Importing the same
    content again changes nothing but where it lies. Raises what ``inspect`` and ``ModelRegistry.register`` raise, and
    ``InvalidRequest`` for what is no name.
    """
    name = wanted.name or name_of(wanted.path)
    require_names(name, wanted.version)
    if not str(wanted.path.absolute()).isprintable():
        raise InvalidRequest(f"{str(wanted.path)!a} cannot be written down: a path is of printable characters.")
    # Before minutes of reading: without its database nothing comes of them.
    with registry_of(database_url) as registry:
        registry.has_any_installed()
        found = inspect(wanted.path, kind=wanted.kind, config=wanted.config, on_bytes=on_bytes)
        descriptor = describe(found, name=name, version=wanted.version)
        registered = registry.register(registration(descriptor, found.path), as_default=wanted.as_default)
    return Imported(descriptor=descriptor, inspection=found, registered=registered)


def name_of(path: Path) -> str:
    """What a model at this path is called when nobody says: what may stand in a name stays of the path's own.

    >>> name_of(Path("models/My XL (v2).safetensors"))
    'My-XL-v2'
    """
    path = path.absolute()
    return as_name(path.name if path.is_dir() else path.stem)


def as_name(text: str) -> str:
    """What may stand in a name of this text, as its owner wrote it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:_LONGEST_NAME]


def require_names(*words: str) -> None:
    """Raise ``InvalidRequest`` for what can be no name or version."""
    for word in words:
        if not _NAME.fullmatch(word):
            said = f"{word!r} is no name: letters, digits, dots, dashes and underscores, {_LONGEST_NAME} at most."
            raise InvalidRequest(said)


def registration(descriptor: ModelDescriptor, path: Path) -> NewModel:
    """The model as the registry takes it; ``path`` is where it lies."""
    return NewModel(
        id=uuid7(),
        name=descriptor.name,
        kind=descriptor.kind,
        version=descriptor.version,
        checkpoint_hash=descriptor.checkpoint_hash,
        source_uri=descriptor.source_uri,
        local_path=str(path),
        parameters_schema=descriptor.parameters_schema,
        capabilities=descriptor.capabilities,
        metadata=descriptor.metadata,
        files=tuple(NewModelFile(**asdict(file)) for file in descriptor.files),
    )


@contextmanager
def registry_of(database_url: str) -> Generator[ModelRegistry]:
    """The registry in this database, for as long as the block takes."""
    engine = open_engine(database_url, application="dreamforge-model", pool_size=1)
    try:
        yield ModelRegistry(engine=engine)
    finally:
        engine.dispose()
