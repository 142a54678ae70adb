"""Models of Civitai, by its public REST API: https://developer.civitai.com/site/reference/model-versions.

What is known of it beside that page:

- `downloadUrl` sends on to storage, which answers 400 to any Authorization header, by an address that expires.
- A `downloadUrl` with words in its query may be 404 while `?fileId=` finds the file (comfyui-mcp issue 1300).
- Who may not have a file is sent to a page to log in, but told so in JSON when the request says that it is of JSON
  (src/pages/api/download/models in civitai/civitai). A HEAD is answered 401 whatever the token.
"""

from typing import ClassVar

from dreamforge.errors import (
    DownloadCorrupt,
    InvalidRequest,
    ModelCorrupt,
    ModelIncompatible,
    SourceForbidden,
    SourceNotFound,
)
from dreamforge.models.file_names import model_name, safe_path
from dreamforge.models.references import EXPECTED, CivitaiReference, parse
from dreamforge.models.remote import Location, RemoteFile, RemoteModel
from dreamforge.models.safetensors_header import CONVERT
from dreamforge.models.sources.attempts import ask
from dreamforge.models.sources.civitai_answers import File, Version, is_sdxl, read_newest, read_version
from dreamforge.models.sources.civitai_api import CivitaiApi
from dreamforge.models.sources.source import ModelSource
from dreamforge.models.weights import Kind

_KINDS = {"Checkpoint": Kind.CHECKPOINT, "LORA": Kind.LORA, "LoCon": Kind.LORA, "VAE": Kind.VAE}
_SAFETENSORS = "SafeTensor"
_SUFFIX = ".safetensors"
_WEIGHTS = ("Model", "Pruned Model", "VAE")
_STANDARD = frozenset({"", "Standard"})


class CivitaiSource(ModelSource):
    """`civitai:model[@version[+file]]`. ``token`` goes to the endpoint's host and no further."""

    scheme: ClassVar[str] = "civitai"
    expects: ClassVar[str] = EXPECTED["civitai"]

    def __init__(self, *, endpoint: str, token: str | None) -> None:
        self._api = CivitaiApi(endpoint=endpoint.rstrip("/"), token=token)

    def resolve(self, reference: str) -> RemoteModel:
        """The file of a version. Raises ``ModelIncompatible`` for what is not of SDXL, beside ``SourceError``."""
        read = parse(reference)
        if not isinstance(read, CivitaiReference):
            raise InvalidRequest(f"That is nothing of Civitai. Expected {self.expects}.")
        version = self._version(read)
        kind = _kind(version)
        _check_usable(version)
        chosen = _choose(version, kind, read.file)
        path = safe_path(chosen.name)
        if chosen.sha256 is None:
            words = f"Civitai does not tell the hash of {path} (yet): it is not fetched. Try again tomorrow."
            raise DownloadCorrupt(words, details={"file": path})
        url = ask(lambda: self._api.working_address(version, chosen))
        pinned = CivitaiReference(version.model_id, version.id, read.file)
        return RemoteModel(
            source_uri=str(pinned),
            name=_name(version, path),
            version=str(version.id),
            files=(RemoteFile(path=path, url=url, size=chosen.size, sha256=chosen.sha256),),
            main=path,
            kind=kind,
            metadata={
                "civitai": {
                    "model_id": version.model_id,
                    "model_version_id": version.id,
                    "file_id": chosen.id,
                    "air": version.air,
                    "base_model": version.base_model,
                    "trained_words": list(version.trained_words),
                }
            },
        )

    def locate(self, file: RemoteFile) -> Location:
        """The address that sends on to storage, each time by a new one."""
        return Location(file.url, self._api.headers())

    def _version(self, read: CivitaiReference) -> Version:
        number = read.version
        if number is None:
            number = ask(lambda: read_newest(self._api.get(f"/api/v1/models/{read.model}"), model=read.model))
        version = ask(lambda: read_version(self._api.get(f"/api/v1/model-versions/{number}"), version=number))
        if version.model_id != read.model:
            words = f"Version {version.id} is not of model {read.model}: did you mean civitai:{version.model_id}"
            raise SourceNotFound(f"{words}@{version.id}?")
        return version


def _kind(version: Version) -> Kind:
    kind = _KINDS.get(version.type)
    if kind is None:
        words = f"{version.title} is a {version.type}; checkpoints, LoRAs and VAEs of SDXL are drawn with."
        raise ModelIncompatible(words, details={"type": version.type})
    base = version.base_model
    if not is_sdxl(base):
        words = f"{version.title} is for {base or 'nothing that is named'}, not for SDXL."
        raise ModelIncompatible(words, details={"base_model": base})
    if version.base_model_type not in _STANDARD:
        words = f"{version.title} is a model for {version.base_model_type.lower()}, which is not drawn with here."
        raise ModelIncompatible(words, details={"base_model": base})
    return kind


def _check_usable(version: Version) -> None:
    if version.usage_control != "Download":
        words = f"The creator of {version.title} lets it be used on Civitai only: it cannot be downloaded."
        raise SourceForbidden(words)
    if not version.files:
        raise SourceForbidden(f"Civitai gives no file of {version.title}: its creator has archived it.")


def _choose(version: Version, kind: Kind, wanted: int | None) -> File:
    """Civitai's own choice where it can be read, else the smallest of what can."""
    if wanted is not None:
        asked = [file for file in version.files if file.id == wanted]
        if not asked:
            known = ", ".join(f"{file.id} ({file.name})" for file in version.files)
            raise SourceNotFound(f"{version.title} has no file {wanted}; it has {known}.")
        files = asked
    else:
        types = _WEIGHTS if kind is Kind.VAE else _WEIGHTS[:2]
        files = [file for file in version.files if file.type in types]
    usable = [file for file in files if file.format in ("", _SAFETENSORS) and file.name.endswith(_SUFFIX)]
    if not usable:
        shown = files[0].name[:80] if files else version.files[0].name[:80]
        words = f"{version.title} has no safetensors file, but {shown!a}. {CONVERT}"
        raise ModelCorrupt(words, details={"reason": "pickle"})
    return min(usable, key=lambda file: (not file.is_primary, file.precision != "fp16", file.size_kb, file.id))


def _name(version: Version, path: str) -> str:
    # Nothing is left of a name in another alphabet.
    named = (model_name(text) for text in (version.model_name, path.removesuffix(_SUFFIX)))
    return next((name for name in named if name != "model"), f"civitai-{version.model_id}")
