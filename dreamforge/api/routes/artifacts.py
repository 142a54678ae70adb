"""`/v1/artifacts`: one finished image, and its bytes."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import RedirectResponse

from dreamforge.api.blob_response import BlobResponse
from dreamforge.api.errors import error_responses
from dreamforge.api.schemas import Artifact
from dreamforge.api.state import ApiState, State
from dreamforge.api.views import CONTENT_TYPES, artifact_filename, artifact_view
from dreamforge.errors import NotFound, StorageUnavailable
from dreamforge.store.tables import ArtifactRow

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])

_BYTES = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}


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
        307: {"description": "The presigned URL, in `Location`"},
        **error_responses(404, 422, 503),
    },
)
async def get_content(
    artifact_id: str,
    state: State,
    redirect: Annotated[bool, Query(description="False: the service streams the bytes itself.")] = True,
) -> Response:
    """Redirects to the presigned URL. Streamed by the service the image comes whole: ranges are for the store."""
    row = await _find(artifact_id, state)
    if redirect:
        url = artifact_view(row, blobs=state.blobs, ttl=state.rules.presign_ttl).url
        return RedirectResponse(url, status_code=307, headers={"Cache-Control": "no-store"})
    blob = await state.blob_threads.run(state.blobs.open, row.s3_key)
    if blob.size != row.size_bytes:
        blob.close()
        raise StorageUnavailable("The object store has another object than the one that was stored.")
    return BlobResponse(blob, threads=state.blob_threads, headers=_headers(row))


@router.head(
    "/{artifact_id}/content",
    operation_id="head_artifact_content",
    summary="Get the headers of an image's bytes",
    response_class=Response,
    responses=error_responses(404, 503),
)
async def head_content(artifact_id: str, state: State) -> Response:
    """What the bytes are, by the row alone: a presigned URL is good for GET only."""
    return Response(headers=_headers(await _find(artifact_id, state)))


def _headers(row: ArtifactRow) -> dict[str, str]:
    return {
        "Content-Type": CONTENT_TYPES[row.format],
        "Content-Length": str(row.size_bytes),
        "Content-Disposition": f'inline; filename="{artifact_filename(row)}"',
        "ETag": f'"sha256:{row.checksum}"',
        "Accept-Ranges": "none",
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
    }


async def _find(artifact_id: str, state: ApiState) -> ArtifactRow:
    try:
        row = await state.jobs.artifact(uuid.UUID(artifact_id))
    except ValueError:
        row = None
    if row is None:
        raise NotFound("There is no such artifact.")
    return row
