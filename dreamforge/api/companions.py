"""The LoRAs and the VAE that a job names: found, and fit for its checkpoint."""

from typing import Any

from dreamforge.api.state import ApiState
from dreamforge.errors import InvalidRequest, ModelDisabled, ModelIncompatible, ModelNotInstalled, UnknownModel
from dreamforge.store.models import USABLE, ModelFilter
from dreamforge.store.tables import ModelRow


async def resolve_companions(params: dict[str, Any], checkpoint: ModelRow, state: ApiState) -> dict[str, Any]:
    """The parameters with each LoRA and the VAE as name@version, and every weight. Raises why one cannot be taken."""
    resolved = dict(params)
    if params.get("loras"):
        loras = [
            {
                "id": await _resolved(lora["id"], "lora", f"params.loras.{index}.id", checkpoint, state),
                "weight": lora.get("weight", 1.0),
            }
            for index, lora in enumerate(params["loras"])
        ]
        _refuse_repeated([lora["id"] for lora in loras])
        resolved["loras"] = loras
    if params.get("vae"):
        resolved["vae"] = await _resolved(params["vae"], "vae", "params.vae", checkpoint, state)
    return resolved


async def _resolved(reference: str, kind: str, path: str, checkpoint: ModelRow, state: ApiState) -> str:
    details = {"model_id": reference, "path": path}
    model = await state.models.find(reference, prefers=(ModelFilter(kind=kind), USABLE))
    if model is None:
        known = [record.model.name for record in await state.models.list() if record.model.kind == kind]
        installed = f"Of kind {kind}: {', '.join(known[:20])}." if known else f"There is none of kind {kind}."
        raise UnknownModel(f"No model {reference!r}. {installed}", details=details)
    if model.kind != kind:
        raise ModelIncompatible(f"The model {model.name!r} is of kind {model.kind}, not {kind}.", details=details)
    if not model.installed:
        raise ModelNotInstalled(f"The model {model.name!r} is not installed.", details=details)
    if not model.enabled:
        raise ModelDisabled(f"The model {model.name!r} is switched off.", details=details)
    if (reason := _misfit(model, checkpoint)) is not None:
        raise ModelIncompatible(
            f"The model {model.name!r} does not fit {checkpoint.name!r}: {reason}.", details=details
        )
    return f"{model.name}@{model.version}"


def _misfit(model: ModelRow, checkpoint: ModelRow) -> str | None:
    """Why the two do not go together, by what their weights say; None also where one does not say."""
    ours, theirs = _weights(model), _weights(checkpoint)
    for name, meaning in (("cross_attention_dim", "cross attention"), ("latent_channels", "latent channels")):
        if name in ours and name in theirs and ours[name] != theirs[name]:
            return f"its {meaning} is {ours[name]} wide, the checkpoint's {theirs[name]}"
    return None


def _weights(model: ModelRow) -> dict[str, int]:
    stated: dict[str, Any] = model.metadata_json.get("weights") or {}
    return {name: value for name, value in stated.items() if isinstance(value, int)}


def _refuse_repeated(ids: list[str]) -> None:
    errors = [
        {"path": f"params.loras.{index}.id", "message": f"names {id} again"}
        for index, id in enumerate(ids)
        if id in ids[:index]
    ]
    if errors:
        raise InvalidRequest("The parameters do not fit the model.", details={"errors": errors})
