"""A model that lies on this machine already, and is copied."""

from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from dreamforge.errors import InvalidRequest, ModelCorrupt, SourceNotFound
from dreamforge.models.descriptor import ModelFile
from dreamforge.models.file_names import model_name, safe_path
from dreamforge.models.files import FoundFile, find_file, find_files
from dreamforge.models.references import EXPECTED, FileReference, parse
from dreamforge.models.remote import RemoteFile, RemoteModel
from dreamforge.models.safetensors_header import CONVERT
from dreamforge.models.sources.selection import Offer, Selection, select
from dreamforge.models.sources.source import Fetcher, ModelSource

_SUFFIX = ".safetensors"


class LocalSource(ModelSource):
    """`file:/path`, a file or a folder. Nothing pins it but the hashes of what was copied."""

    scheme: ClassVar[str] = "file"
    expects: ClassVar[str] = EXPECTED["file"]

    def resolve(self, reference: str) -> RemoteModel:
        """What lies there now. Raises ``SourceNotFound`` for what is not there or may not be read."""
        read = parse(reference)
        if not isinstance(read, FileReference):
            raise InvalidRequest(f"That is nothing of this machine. Expected {self.expects}.")
        path = Path(read.path)
        try:
            path.lstat()
            found = {file.name: file for file in (find_files(path) if path.is_dir() else [find_file(path)])}
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise SourceNotFound(f"{path} cannot be read here: {why}.") from error
        selection = _select_in(path, found) if path.is_dir() else _select_file(path)
        files = tuple(_file(found[name]) for name in selection.paths)
        return RemoteModel(
            source_uri=str(read),
            name=model_name(path.name if selection.main is None else Path(selection.main).stem),
            version="1",
            files=files,
            main=selection.main,
            kind=selection.kind,
        )

    def fetch_file(self, file: RemoteFile, target: Path, *, fetcher: Fetcher) -> ModelFile:
        """Copy one file."""
        return fetcher.copy(file, Path(unquote(urlsplit(file.url).path)), target)


def _select_in(folder: Path, found: dict[str, FoundFile]) -> Selection:
    return select(Offer(name=folder.name, paths=found, reference_to=lambda path: f"file:{folder / path}"))


def _select_file(path: Path) -> Selection:
    if path.suffix != _SUFFIX:
        raise ModelCorrupt(f"{path.name} is no safetensors file. {CONVERT}", details={"file": path.name})
    return Selection((path.name,), main=path.name)


def _file(found: FoundFile) -> RemoteFile:
    return RemoteFile(path=safe_path(found.name), url=found.path.as_uri(), size=found.size)
