"""Which model a request means: by id, name, or name@version."""

import uuid
from collections.abc import Sequence

from dreamforge.api.state import ApiState
from dreamforge.errors import ModelDisabled, ModelIncompatible, ModelNotInstalled, UnknownModel
from dreamforge.jobs.job import JobType
from dreamforge.store.models import USABLE, ModelFilter
from dreamforge.store.tables import ModelRow


async def usable_model(reference: str | None, job_type: JobType, state: ApiState) -> ModelRow:
    """The model that a job is to be run with, the default one for None. Raises why it cannot be.

    A name may be that of models that do other things too, as a LoRA's: those that can run the job come first.
    """
    model = await state.models.find(reference, prefers=(ModelFilter(capability=job_type), USABLE))
    if model is None:
        raise await _unknown(reference, state)
    details = {"model_id": reference or str(model.id)}
    if not model.installed:
        raise ModelNotInstalled(f"The model {model.name!r} is not installed.", details=details)
    if not model.enabled:
        raise ModelDisabled(f"The model {model.name!r} is switched off.", details=details)
    if job_type not in model.capabilities:
        raise ModelIncompatible(f"The model {model.name!r} cannot {job_type}.", details=details)
    return model


async def known_models(reference: str, state: ApiState) -> Sequence[uuid.UUID]:
    """The models that a list is asked about: a name means all its versions. Raises ``UnknownModel``."""
    ids = await state.models.ids_of(reference)
    if not ids:
        raise await _unknown(reference, state)
    return ids


async def _unknown(reference: str | None, state: ApiState) -> UnknownModel:
    installed = [record.model.name for record in await state.models.list() if record.model.installed]
    known = f"Installed: {', '.join(installed[:20])}." if installed else "None is installed."
    if reference is None:
        return UnknownModel(f"There is no default model. {known}")
    return UnknownModel(f"No model {reference!r}. {known}", details={"model_id": reference})
