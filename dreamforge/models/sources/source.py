"""What a place is that models come from.

Others can be added: a package names a subclass of ``ModelSource`` as an entry point in the group
`dreamforge.model_sources`, by the scheme that its references begin with.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Protocol

from dreamforge.errors import DownloadCorrupt
from dreamforge.models.description import describe
from dreamforge.models.descriptor import ModelDescriptor, ModelFile
from dreamforge.models.inspection import Inspection
from dreamforge.models.remote import Location, RemoteFile, RemoteModel

_FILES_AT_ONCE = 3


class Fetcher(Protocol):
    """Brings single files, each whole and verified. Both methods can be called from several threads."""

    def fetch(self, file: RemoteFile, locate: Callable[[], Location], target: Path) -> ModelFile:
        """Download the file to ``target``, from where it broke off, or take it from what is there already.

        ``locate`` is asked for the address, again when one has expired.
        """
        ...

    def copy(self, file: RemoteFile, source: Path, target: Path) -> ModelFile:
        """The same for a file of this machine."""
        ...


class ModelSource(ABC):
    """One kind of place. ``scheme``: how its references begin; ``expects``: how they are written, for a person."""

    scheme: ClassVar[str]
    expects: ClassVar[str]

    @abstractmethod
    def resolve(self, reference: str) -> RemoteModel:
        """What ``reference`` (all of it, with the scheme) stands for now, pinned.

        Raises ``InvalidRequest`` for what is no reference, and ``errors.SourceError`` for what the place answers.
        """

    def locate(self, file: RemoteFile) -> Location:
        """Where to read a file of a resolved model now. Asked again when the address has expired."""
        return Location(file.url)

    def fetch(self, model: RemoteModel, folder: Path, *, fetcher: Fetcher) -> tuple[ModelFile, ...]:
        """Have every file of the model in ``folder``, several at once. Raises what ``Fetcher.fetch`` raises."""

        def fetch_one(file: RemoteFile) -> ModelFile:
            return self.fetch_file(file, folder / file.path, fetcher=fetcher)

        with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="fetch") as threads:
            fetched = [threads.submit(fetch_one, file) for file in model.files]
            try:
                done, _ = wait(fetched, return_when=FIRST_EXCEPTION)
                files = [future.result() for future in done]
            except BaseException:
                # What has begun ends by itself; what has not is not begun.
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return tuple(sorted(files, key=lambda file: file.path))

    def fetch_file(self, file: RemoteFile, target: Path, *, fetcher: Fetcher) -> ModelFile:
        """Have one file at ``target``."""
        return fetcher.fetch(file, lambda: self.locate(file), target)

    def verify(self, model: RemoteModel, files: tuple[ModelFile, ...]) -> None:
        """Raise ``DownloadCorrupt`` unless these are all the model's files, as the source described them."""
        found = {file.path: file for file in files}
        for told in model.files:
            file = found.pop(told.path, None)
            if file is None or told.size not in (None, file.size) or told.sha256 not in (None, file.sha256):
                raise DownloadCorrupt(f"{told.path} is not what its source said.", details={"file": told.path})
        if found:
            raise DownloadCorrupt(f"{min(found)} is none of the model's files.", details={"file": min(found)})

    def to_model_descriptor(self, model: RemoteModel, found: Inspection, *, name: str, version: str) -> ModelDescriptor:
        """What the registry keeps of the model, once its files lie where ``found`` says."""
        described = describe(found, name=name, version=version)
        return replace(described, source_uri=model.source_uri, metadata={**described.metadata, **model.metadata})
