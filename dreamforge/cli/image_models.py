"""Which of the service's models, LoRAs and VAEs an image file means. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from dreamforge.api.schemas import Model
from dreamforge.errors import InvalidRequest
from dreamforge.models.references import CivitaiReference, parse

CHECKPOINT, LORA, VAE = "checkpoint", "lora", "vae"
_CALLED = {CHECKPOINT: "model", LORA: "LoRA", VAE: "VAE"}
_SHORT_HASH = 10


@dataclass(frozen=True)
class Choice:
    """What to ask the service for, None where it has nothing of the kind; ``notes`` are sentences about what is not as
    it was.
    """

    reference: str | None
    notes: tuple[str, ...] = ()


def choose(named: str, sha256: str | None, models: Sequence[Model], *, kind: str) -> Choice:
    """The one that a file names, by its hash or else by its name, of those that can be used now; the newest of several.

    ``kind`` is `lora` or `vae`, or `checkpoint` for what draws.
    """
    usable = [model for model in in_order(models) if is_usable(model) and is_of_kind(model, kind)]
    called = [model for model in usable if is_called(model, named)]
    same = [model for model in usable if sha256 and _is_same(model, sha256)]
    found = next(iter([*(model for model in same if is_called(model, named)), *same, *called]), None)
    if found is None:
        return Choice(None)
    reference = full_name(found)
    if named and not is_called(found, named):
        return Choice(reference, (f"{named} is called {reference} here.",))
    if sha256 and not same:
        return Choice(reference, (other_hash(reference, kind),))
    return Choice(reference)


def judge(wanted: str, sha256: str | None, models: Sequence[Model]) -> Choice:
    """A person's own choice of a model, as it is."""
    found = meant(wanted, models)
    if found and sha256 and not _is_same(found, sha256):
        return Choice(wanted, (other_hash(wanted, CHECKPOINT),))
    return Choice(wanted)


def meant(reference: str | None, models: Sequence[Model]) -> Model | None:
    """The model that the service takes for a reference, and for None."""
    draws_first = sorted(in_order(models), key=lambda model: is_of_kind(model, CHECKPOINT), reverse=True)
    found = (model for model in draws_first if (is_called(model, reference) if reference else model.default))
    return next(found, None)


def in_order(models: Sequence[Model]) -> list[Model]:
    """Those that can be used first, and the newest first."""
    newest_first = sorted(models, key=lambda model: model.created_at, reverse=True)
    return sorted(newest_first, key=is_usable, reverse=True)


def other_hash(reference: str, kind: str) -> str:
    """The note on one that has the name alone in common."""
    return (
        f"{reference} is not the {_CALLED[kind]} that the file was made with: its hash is another. Images may differ."
    )


def is_usable(model: Model) -> bool:
    """It is there, and not switched off."""
    return model.installed and model.enabled


def is_of_kind(model: Model, kind: str) -> bool:
    """Whatever is neither a LoRA nor a VAE is a checkpoint."""
    return model.kind == kind if kind != CHECKPOINT else model.kind not in {LORA, VAE}


def is_called(model: Model, reference: str) -> bool:
    """By its name, its name and version, or its id."""
    return reference in {model.name, full_name(model), str(model.id)}


def full_name(model: Model) -> str:
    """The name that means one version alone."""
    return f"{model.name}@{model.version}"


def lacking(kind: str, named: str, air: str | None = None) -> str:
    """The note on a LoRA or a VAE that the service does not have. ``air``: Civitai's name for it."""
    return f"Without the {_CALLED[kind]} {named}, which is not here.{_to_be_had(air)}"


def absent(named: str, sha256: str | None, air: str | None, models: Sequence[Model]) -> tuple[str, ...]:
    """The note on a model that the service does not have, where Civitai does. One that is switched off is here."""
    words = _to_be_had(air)
    there = (model for model in models if model.installed)
    if not words or any(is_called(model, named) or (sha256 and _is_same(model, sha256)) for model in there):
        return ()
    return (f"{named} is not here.{words}",)


def on_civitai(air: str | None) -> str | None:
    """The reference that downloads what Civitai calls so, as `civitai:277058@1920523`. A file says what it likes."""
    try:
        read = parse(air or "")
    except InvalidRequest:
        return None
    return str(read) if isinstance(read, CivitaiReference) else None


def _to_be_had(air: str | None) -> str:
    reference = on_civitai(air)
    return f" Get it: dreamforge model download {reference}" if reference else ""


def _is_same(model: Model, sha256: str) -> bool:
    """By the whole hash, or by a short one as A1111 writes it."""
    return len(sha256) >= _SHORT_HASH and (model.checkpoint_hash or "").startswith(sha256.lower())
