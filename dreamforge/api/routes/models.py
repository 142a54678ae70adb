"""`/v1/models`."""

from fastapi import APIRouter

from dreamforge.api.errors import error_responses
from dreamforge.api.schemas import ModelList
from dreamforge.api.state import State
from dreamforge.api.views import model_view

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", operation_id="list_models", summary="List the models", responses=error_responses(503))
async def list_models(state: State) -> ModelList:
    """Every model, with the schema of its parameters."""
    return ModelList(items=[model_view(record) for record in await state.models.list()])
