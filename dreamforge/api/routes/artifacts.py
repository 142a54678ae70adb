"""`/v1/artifacts`: one finished image, and its bytes."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from dreamforge.api.blob_response import BlobResponse
from dreamforge.api.errors import error_responses
from dreamforge.api.etag import IfNoneMatch, is_known
from dreamforge.api.openapi import NOT_MODIFIED, with_headers
from dreamforge.api.schemas import Artifact
from dreamforge.api.state import ApiState, State
from dreamforge.api.views import artifact_filename, artifact_view
from dreamforge.errors import NotFound, StorageUnavailable
from dreamforge.jobs.identity import uuid_of
from dreamforge.jobs.image_format import IMAGE_FORMATS
from dreamforge.store.tables import ArtifactRow

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])

_TOLD = with_headers(
    "Accept-Ranges", "Cache-Control", "Content-Disposition", "Content-Length", "ETag", "X-Content-Type-Options"
)
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BYTES = {**_TOLD, "content": {format.content_type: _BINARY for format in IMAGE_FORMATS.values()}}
_NOT_MODIFIED = {**NOT_MODIFIED, **with_headers("Cache-Control")}


@router.get(
    "/{artifact_id}",
    operation_id="get_artifact",
    summary="Get an image's description",
    responses=error_responses(404, 503),
)
async def get_artifact(artifact_id: str, state: State) -> Artifact:
    """One image, with a fresh presigned URL."""
    return artifact_view(await _find(artifact_id, state), blobs=state.blobs, ttl=state.rules.presign_ttl)


@router.get(
    "/{artifact_id}/content",
    operation_id="get_artifact_content",
    summary="Get an image's bytes",
    response_class=Response,
    status_code=307,
    responses={
        200: {**_BYTES, "description": "With `redirect=false`: the bytes"},
        304: {**_NOT_MODIFIED, "description": "With `redirect=false`: `If-None-Match` names these bytes"},
        307: {"description": "The presigned URL, in `Location`"},
        **error_responses(404, 422, 503),
    },
)
async def get_content(
    artifact_id: str,
    request: Request,
    state: State,
    _: IfNoneMatch = None,
    redirect: Annotated[bool, Query(description="False: the service streams the bytes itself.")] = True,
) -> Response:
    """Redirects to the presigned URL. Streamed by the service the image comes whole: ranges are for the store."""
    row = await _find(artifact_id, state)
    if redirect:
        url = artifact_view(row, blobs=state.blobs, ttl=state.rules.presign_ttl).url
        return RedirectResponse(url, status_code=307, headers={"Cache-Control": "no-store"})
    if is_known(request, _tag(row)):
        return _not_modified(row)
    try:
        blob = await state.blob_threads.run(state.blobs.open, row.s3_key)
    except StorageUnavailable as error:
        if error.details.get("code") == "NoSuchKey":
            # Its job may have been deleted since.
            await _find(artifact_id, state)
        raise
    if blob.size != row.size_bytes:
        blob.close()
        raise StorageUnavailable("The object store has another object than the one that was stored.")
    return BlobResponse(blob, threads=state.blob_threads, headers=_headers(row))


@router.head(
    "/{artifact_id}/content",
    operation_id="head_artifact_content",
    summary="Get the headers of an image's bytes",
    response_class=Response,
    responses={200: _TOLD, 304: _NOT_MODIFIED, **error_responses(404, 503)},
)
async def head_content(artifact_id: str, request: Request, state: State, _: IfNoneMatch = None) -> Response:
    """What the bytes are, by the row alone: a presigned URL is good for GET only."""
    row = await _find(artifact_id, state)
    return _not_modified(row) if is_known(request, _tag(row)) else Response(headers=_headers(row))


def _tag(row: ArtifactRow) -> str:
    return f"sha256:{row.checksum}"


def _not_modified(row: ArtifactRow) -> Response:
    kept = _headers(row)
    return Response(status_code=304, headers={name: kept[name] for name in ("ETag", "Cache-Control")})


def _headers(row: ArtifactRow) -> dict[str, str]:
    return {
        "Content-Type": IMAGE_FORMATS[row.format].content_type,
        "Content-Length": str(row.size_bytes),
        "Content-Disposition": f'inline; filename="{artifact_filename(row)}"',
        "ETag": f'"{_tag(row)}"',
        "Accept-Ranges": "none",
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
    }


async def _find(artifact_id: str, state: ApiState) -> ArtifactRow:
    identity = uuid_of(artifact_id)
    row = await state.jobs.artifact(identity) if identity is not None else None
    if row is None:
        raise NotFound("There is no such artifact.")
    return row
