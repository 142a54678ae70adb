"""A single file of the web, which is known by its hash alone."""

from pathlib import PurePosixPath
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from dreamforge.errors import InvalidRequest
from dreamforge.models.file_names import fault_of, model_name
from dreamforge.models.references import EXPECTED, UrlReference, parse
from dreamforge.models.remote import RemoteFile, RemoteModel
from dreamforge.models.sources.source import ModelSource

_VERSION_DIGITS = 12


class UrlSource(ModelSource):
    """`https://…#sha256=…`. Nobody is asked before the download: the hash pins it."""

    scheme: ClassVar[str] = "https"
    expects: ClassVar[str] = EXPECTED["https"]

    def resolve(self, reference: str) -> RemoteModel:
        """The one file of this address, by the name at its end."""
        read = parse(reference)
        if not isinstance(read, UrlReference):
            raise InvalidRequest(f"That is no address of a file. Expected {self.expects}.")
        name = PurePosixPath(unquote(urlsplit(read.url).path)).name
        fault = fault_of(name)
        if fault or not name.endswith(".safetensors"):
            words = fault or "is not of safetensors"
            raise InvalidRequest(f"The file at the end of that address {words}. Expected {self.expects}.")
        return RemoteModel(
            source_uri=str(read),
            name=model_name(PurePosixPath(name).stem),
            version=read.sha256[:_VERSION_DIGITS],
            files=(RemoteFile(path=name, url=read.url, sha256=read.sha256),),
            main=name,
        )
