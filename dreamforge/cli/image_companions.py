"""The LoRAs and the VAE of a job that draws an image again. Pure."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from dreamforge.api.schemas import Model
from dreamforge.cli.image_models import LORA, VAE, Choice, choose, lacking
from dreamforge.images.manifest import Manifest, ManifestLora, ManifestVae
from dreamforge.images.parameters_reading import A1111Parameters

_MOST_NAMED = 8


@dataclass(frozen=True)
class CompanionCall:
    """``params`` to add to the job's; ``notes`` are sentences about what will not be as it was."""

    params: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Wish:
    """A LoRA that a file names, and its entry in `params.loras`."""

    named: str
    sha256: str | None
    entry: dict[str, Any]
    air: str | None = None


def companions_of_manifest(manifest: Manifest, models: Sequence[Model]) -> CompanionCall:
    """Those that the manifest's parameters name, found by the hashes that it has of them."""
    loras, vae = _loras_of(manifest, models), _vae_of(manifest, models)
    return CompanionCall({**loras.params, **vae.params}, (*loras.notes, *vae.notes))


def companions_of_text(text: A1111Parameters, models: Sequence[Model]) -> CompanionCall:
    """The LoRAs that the prompt names and that are here."""
    hashes = _hashes_of(text)
    return _found(
        [_Wish(lora.name, hashes.get(f"lora:{lora.name}"), {"weight": lora.weight}) for lora in text.loras], models
    )


def _hashes_of(text: A1111Parameters) -> dict[str, str]:
    """The short hashes of `Hashes`."""
    try:
        said: object = json.loads(text.fields.get("Hashes", "{}"))
    except (ValueError, RecursionError):
        return {}
    pairs = cast("dict[str, object]", said).items() if isinstance(said, dict) else ()
    return {name: value for name, value in pairs if isinstance(value, str)}


def _loras_of(manifest: Manifest, models: Sequence[Model]) -> CompanionCall:
    given: Any = manifest.params.get("loras")
    if not given:
        # Of no LoRAs at all the parameters may say so.
        wishes = [_Wish(_full_name(lora), lora.sha256, {"weight": lora.weight}, lora.air) for lora in manifest.loras]
        said = CompanionCall({"loras": given} if "loras" in manifest.params else {})
        return _found(wishes, models) if wishes else said
    if not _are_entries(given):
        # The schema has a word for it.
        return CompanionCall({"loras": given})
    known = {_full_name(lora): (lora.sha256, lora.air) for lora in manifest.loras}
    wishes = [(entry, *known.get(entry["id"], (None, None))) for entry in given]
    return _found([_Wish(entry["id"], sha256, entry, air) for entry, sha256, air in wishes], models)


def _vae_of(manifest: Manifest, models: Sequence[Model]) -> CompanionCall:
    given: Any = manifest.params.get("vae")
    named = given or (_full_name(manifest.vae) if manifest.vae else None)
    if not named or not isinstance(named, str):
        return CompanionCall({"vae": given} if "vae" in manifest.params else {})
    chosen = choose(named, manifest.vae.sha256 if manifest.vae else None, models, kind=VAE)
    if chosen.reference is None:
        return CompanionCall({}, (lacking(VAE, named),))
    return CompanionCall({"vae": chosen.reference}, chosen.notes)


def _found(wishes: Iterable[_Wish], models: Sequence[Model]) -> CompanionCall:
    """The LoRAs of these that are here, each once: the service takes none twice."""
    loras: dict[str, dict[str, Any]] = {}
    notes: dict[str, None] = {}
    choices: dict[tuple[str, str | None], Choice] = {}
    for wish in wishes:
        key = (wish.named, wish.sha256)
        chosen = choices[key] if key in choices else choose(wish.named, wish.sha256, models, kind=LORA)
        choices[key] = chosen
        if chosen.reference is None:
            notes[lacking(LORA, wish.named, wish.air)] = None
        elif chosen.reference in loras:
            notes[f"The LoRA {wish.named} is named more than once: the first weight counts."] = None
        else:
            loras[chosen.reference] = {**wish.entry, "id": chosen.reference}
            notes.update(dict.fromkeys(chosen.notes))
    return CompanionCall({"loras": list(loras.values())} if loras else {}, tuple(notes)[:_MOST_NAMED])


def _are_entries(given: Any) -> bool:
    if not isinstance(given, list):
        return False
    entries = cast("list[object]", given)
    return all(isinstance(entry, dict) and isinstance(cast("Any", entry).get("id"), str) for entry in entries)


def _full_name(named: ManifestLora | ManifestVae) -> str:
    return f"{named.name}@{named.version}" if named.version else named.name
