"""`/v1/models`."""

import re
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import StringConstraints

from dreamforge.api.errors import error_responses
from dreamforge.api.etag import IfNoneMatch, tagged
from dreamforge.api.openapi import ETAG, NOT_MODIFIED
from dreamforge.api.schemas import Model, ModelList
from dreamforge.api.state import State
from dreamforge.api.views import model_view
from dreamforge.errors import NotFound
from dreamforge.store.models import ModelFilter

router = APIRouter(prefix="/v1/models", tags=["models"])

# Postgres knows no NUL in a text.
_Word = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]


@router.get(
    "",
    operation_id="list_models",
    summary="List the models",
    response_model=ModelList,
    responses={200: ETAG, 304: NOT_MODIFIED, **error_responses(422, 503)},
)
async def list_models(
    request: Request,
    state: State,
    _: IfNoneMatch = None,
    kind: Annotated[_Word | None, Query(description="A family of models.", examples=["sdxl"])] = None,
    installed: Annotated[bool | None, Query(description="Its files are there.")] = None,
    enabled: Annotated[bool | None, Query(description="It is not switched off.")] = None,
    capability: Annotated[
        _Word | None, Query(description="A type of job that it can do.", examples=["generate"])
    ] = None,
) -> Response:
    """Models by name and version, each with the schema of its parameters. One page holds all that fit the filters."""
    wanted = ModelFilter(kind=kind, installed=installed, enabled=enabled, capability=capability)
    return tagged(request, ModelList(items=[model_view(record) for record in await state.models.list(wanted)]))


@router.get(
    "/{model_id}",
    operation_id="get_model",
    summary="Get a model",
    response_model=Model,
    responses={200: ETAG, 304: NOT_MODIFIED, **error_responses(404, 503)},
)
async def get_model(
    model_id: Annotated[
        str, Path(description="An id, name@version, or a name: then its newest version.", examples=["sdxl-tiny"])
    ],
    request: Request,
    state: State,
    _: IfNoneMatch = None,
) -> Response:
    """One model, with the schema of its parameters."""
    record = await state.models.record(model_id) if re.fullmatch(r"[^\x00]{1,200}", model_id) else None
    if record is None:
        raise NotFound("There is no such model.")
    return tagged(request, model_view(record))
