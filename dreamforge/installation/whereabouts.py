"""Where the files of a registered model are on this machine, and how they compare with what is asked for."""

from pathlib import Path

from dreamforge.errors import Conflict
from dreamforge.models.descriptor import ModelDescriptor, ModelFile
from dreamforge.models.inspection import Layout
from dreamforge.models.remote import RemoteModel
from dreamforge.store.model_contents import ModelContent


def files_at(content: ModelContent) -> list[tuple[Path, ModelFile]]:
    """Each file of an installed model, and its path."""
    path = Path(content.local_path or "")
    folder = path.parent if content.metadata.get("layout") == Layout.FILE else path
    return [(folder / file.path, ModelFile(**vars(file))) for file in content.files]


def descriptor_of(content: ModelContent) -> ModelDescriptor:
    """The descriptor of a model that is registered."""
    return ModelDescriptor(
        name=content.name,
        version=content.version,
        kind=content.kind,
        source_uri=content.source_uri,
        checkpoint_hash=content.checkpoint_hash or "",
        parameters_schema=content.parameters_schema,
        capabilities=content.capabilities,
        files=tuple(ModelFile(**vars(file)) for file in content.files),
        metadata=content.metadata,
    )


def damage_of(content: ModelContent) -> str | None:
    """What is wrong with the model's files, as far as their sizes tell; None where nothing is."""
    for path, file in files_at(content):
        try:
            size = path.stat().st_size
        except OSError:
            return f"{file.path} is gone"
        if size != file.size:
            return f"{file.path} has {size} bytes of {file.size}"
    return None


def is_same(model: RemoteModel, content: ModelContent) -> bool:
    """True for a registered model that is what this would become: of the same source, at the same revision."""
    is_pinned = all(file.sha256 or file.git_sha1 for file in model.files)
    return is_pinned and content.source_uri == model.source_uri


def differs(model: RemoteModel, content: ModelContent) -> bool:
    """True for a registered model that cannot be what this would become: its files are others.

    What a source tells no sha256 of is compared by its size.
    """
    if content.source_uri == model.source_uri:
        return False
    told = [file for file in model.files if model.main in {None, file.path}]
    if model.main is not None:
        return bool(told) and told[0].sha256 not in {None, content.checkpoint_hash}
    known = {file.path: file for file in content.files}
    return {file.path for file in told} != set(known) or any(
        file.sha256 not in {None, known[file.path].sha256} or file.size not in {None, known[file.path].size}
        for file in told
    )


def conflict_with(content: ModelContent) -> Conflict:
    """The error for a model that cannot have this name and version, because they are taken."""
    return Conflict(
        f"There is a model {content.reference} already, with other content, from {content.source_uri}. "
        "Choose another name (--name) or another version (--version).",
        details={"model_id": str(content.id), "checkpoint_hash": content.checkpoint_hash},
    )
