"""A download that the API is asked for: the body, and the job that comes of it."""

from importlib.metadata import entry_points
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from dreamforge.api.schemas import MetadataKey, MetadataValue, Strict
from dreamforge.api.state import ApiState
from dreamforge.errors import Conflict, InvalidRequest
from dreamforge.models.references import FileReference, OtherReference, Reference, UrlReference, expected, parse

_Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class DownloadModel(Strict):
    """A model to download in the background. What is null is left to its source."""

    source: Annotated[str, StringConstraints(min_length=1, max_length=2048)] = Field(
        description="Where it comes from: `hf:org/repo[@revision][:file]`, `civitai:model[@version]`, "
        "`civitai:urn:air:…`, or `https://…#sha256=…`. Tokens stay in the service's own settings."
    )
    name: _Word | None = Field(default=None, description="What jobs call it.")
    version: _Word | None = Field(default=None, description="A name may have several.")
    kind: Literal["checkpoint", "lora", "vae"] | None = Field(
        default=None, description="What it has to be; null: what it turns out to be."
    )
    default: bool | None = Field(
        default=None,
        description="Whether jobs that name no model take it from then on. Null: if there is no such model yet.",
    )
    local_only: bool = Field(
        default=False, description="Leave the files where they are downloaded: they are not sent to the object store."
    )
    priority: Literal["low", "normal", "high"] = Field(default="normal", description="A higher one is run first.")
    metadata: dict[MetadataKey, MetadataValue] = Field(
        title="Metadata of the job", default_factory=dict, max_length=16, description="The caller's own."
    )


def download_params(request: DownloadModel, state: ApiState) -> dict[str, Any]:
    """The parameters of the job. Raises ``InvalidRequest`` for what is no source of the service's."""
    require_slots(state)
    return {
        "source": str(_reference(request.source)),
        "name": request.name,
        "version": request.version,
        "kind": request.kind,
        "default": request.default,
        "local_only": request.local_only,
    }


def require_slots(state: ApiState) -> None:
    """Raise ``Conflict`` where nobody would ever begin a download."""
    if not state.rules.takes_downloads:
        raise Conflict(
            "This service downloads nothing by itself: its DREAMFORGE_DOWNLOAD_SLOTS is 0. "
            "On its machine there is `dreamforge model download`."
        )


def _reference(source: str) -> Reference:
    try:
        reference = parse(source)
    except InvalidRequest as error:
        raise _wrong(error.message) from error
    if isinstance(reference, FileReference):
        # Whoever reaches the API could read, or feel for, any file of the service's machine.
        raise _wrong("A file of the service's own machine is taken by `dreamforge model import` there, and not here.")
    if isinstance(reference, UrlReference) and not reference.url.startswith("https://"):
        # There are only those of loopback: other servers of the service's own machine.
        raise _wrong("An address begins with https:// here.")
    if isinstance(reference, OtherReference) and reference.scheme not in _added_schemes():
        raise _wrong(f"No source is called {reference.scheme!r}. {expected()}")
    return reference


def _added_schemes() -> set[str]:
    # By name alone: what an added source imports is the download's affair.
    return {point.name for point in entry_points(group="dreamforge.model_sources")}


def _wrong(words: str) -> InvalidRequest:
    return InvalidRequest("The request is not valid.", details={"errors": [{"path": "source", "message": words}]})
