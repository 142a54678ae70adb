"""The `parameters` text: how an image was made, as AUTOMATIC1111 writes it (``modules/processing.py``,
``create_infotext``) and its web UI, Forge, ComfyUI's importer and Civitai read it::

    a lighthouse at dawn <lora:film_grain:0.6>
    Negative prompt: blurry
    Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 7, Size: 1024x1024, …

The rules of the readers:

- the last line is a list of `key: value`; a value with a comma, colon or newline is a JSON string
  (``modules/infotext_utils.py``, ``quote`` and ``parse_generation_parameters``), but `Hashes` and `Civitai resources`,
  which Civitai takes out of the line as JSON (``src/utils/metadata/automatic.metadata.ts``);
- ComfyUI wants the line `Negative prompt:`, even an empty one (``src/scripts/pnginfo.ts``, ``importA1111``); Civitai
  divides the text wherever these words stand, and takes the first line that begins with `Steps: ` for the last one;
- a short hash is the first ten hex digits of a sha256; in `Lora hashes` it is the first twelve of a LoRA's tensors
  alone (``extensions-builtin/Lora/network.py``).
"""

import json
import re
from collections.abc import Mapping, Sequence

from dreamforge.images.extra_networks import LoraTag, as_tag, harmless_tags, parted, safe_names, without_open_end
from dreamforge.images.manifest import Manifest, ManifestLora, ManifestModel
from dreamforge.jobs.schedulers import SCHEDULERS

WORD_JOINER = "\u2060"
_SHORT_HASH, _LORA_HASH = 10, 12
_NEGATIVE = "\nNegative prompt: "
_CUT = "…"
# What a reader takes for the beginning of another part: anywhere, or at a line's start.
_MARKS = re.compile(
    r"(Negative prompt|^(?:[^\S\n]|\ufeff)*(?:Steps|Template|Negative Template))(?=:)", re.MULTILINE | re.IGNORECASE
)
_BREAKS = re.compile(r"\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_AIR = re.compile(r"urn:air:[\w.-]+:[\w.-]+:civitai:\d+@\d+", re.ASCII)


def parameters_text(manifest: Manifest) -> str:
    """The text of what the manifest says."""
    params, names = manifest.params, safe_names([lora.name for lora in manifest.loras])
    tags = [LoraTag(name, lora.weight) for name, lora in zip(names, manifest.loras, strict=True)]
    prompt, there = harmless_tags(_harmless(str(params.get("prompt", ""))), allowed=tags)
    prompt = " ".join(filter(None, [prompt, *(as_tag(tag) for tag in tags if tag not in there)]))
    negative, _ = harmless_tags(_harmless(str(params.get("negative_prompt", ""))), allowed=())
    loras = dict(zip(names, manifest.loras, strict=True))
    fields = {**_sampling(manifest), **_hashes(manifest, loras), "Version": _version(manifest)}
    line = ", ".join(f"{name}: {value}" for name, value in fields.items() if value is not None)
    return f"{prompt}{_NEGATIVE}{negative}\n{line}"


def shortened(text: str, most: int) -> str:
    """A text of ``parameters_text`` in ``most`` UTF-16 units: prompts that are too long end with `…`, LoRAs follow."""
    if _units(text) <= most:
        return text
    prompts, _, line = text.rpartition("\n")
    prompt, _, negative = prompts.rpartition(_NEGATIVE)
    words, tags = parted(prompt)
    room = most - _units(line) - _units(_NEGATIVE) - 1
    kept = _that_fit(tags, room - 2 * _units(_CUT))
    left = room - _units(kept)
    # Blanks between words and tags may be more than will be there.
    own = max(_units(words), _units(prompt) - _units(kept))
    longest = max(left // 2, left - min(own, _units(negative)))
    if _units(prompt) > longest + _units(kept):
        prompt = f"{without_open_end(_cut(words, longest)) if kept else _cut(words, longest)}{kept}"
    return f"{prompt}{_NEGATIVE}{_cut(negative, longest)}\n{line}"


def _sampling(manifest: Manifest) -> dict[str, str | None]:
    params = manifest.params
    scheduler = SCHEDULERS.get(str(params.get("scheduler")))
    return {
        "Steps": _quoted(params.get("steps")),
        "Sampler": _quoted(scheduler.a1111_sampler) if scheduler else None,
        "Schedule type": _quoted(scheduler.a1111_schedule) if scheduler else None,
        "CFG scale": _quoted(params.get("guidance_scale")),
        "Seed": _quoted(manifest.seed),
        "Size": f"{manifest.width}x{manifest.height}" if manifest.width and manifest.height else None,
    }


def _hashes(manifest: Manifest, loras: Mapping[str, ManifestLora]) -> dict[str, str | None]:
    model, vae = manifest.model, manifest.vae
    known = {name: lora.sha256 for name, lora in loras.items() if lora.sha256}
    tensors = {name: hash for name, lora in loras.items() if (hash := lora.tensor_hash or lora.sha256)}
    short = {
        "model": model.sha256 if model else None,
        **{f"lora:{name}": sha256 for name, sha256 in known.items()},
        "vae": vae.sha256 if vae else None,
    }
    hashes = {name: sha256[:_SHORT_HASH] for name, sha256 in short.items() if sha256}
    resources = [
        *([_resource("checkpoint", model, 1)] if model else []),
        *(_resource("lora", lora, lora.weight) for lora in loras.values()),
    ]
    return {
        "Model hash": hashes.get("model"),
        "Model": _quoted(model.name or None) if model else None,
        "VAE hash": hashes.get("vae"),
        "VAE": _quoted(vae.name or None) if vae else None,
        "Lora hashes": _quoted(", ".join(f"{name}: {hash[:_LORA_HASH]}" for name, hash in tensors.items()) or None),
        "Hashes": _json(hashes) if hashes else None,
        "Civitai resources": _json(found) if (found := list(filter(None, resources))) else None,
    }


def _resource(type: str, named: ManifestModel | ManifestLora, weight: float) -> dict[str, object] | None:
    """Civitai's entry of what Civitai has a name for."""
    if named.model_version_id is not None:
        return {"type": type, "weight": weight, "modelVersionId": named.model_version_id}
    if named.air and _AIR.fullmatch(named.air):
        return {"type": type, "weight": weight, "air": named.air}
    return None


def _version(manifest: Manifest) -> str | None:
    ours = manifest.versions.get("dreamforge")
    return _quoted(f"dreamforge {ours}") if ours else None


def _quoted(value: object) -> str | None:
    if value is None:
        return None
    text = _BREAKS.sub("\n", str(value))
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _harmless(prompt: str) -> str:
    """A prompt that cannot pass for the parts behind it: before the colon of such a beginning stands a word joiner,
    which no reader takes for white space and which has no width.

    The manifest holds the prompt as it was.
    """
    return _bare(_MARKS.sub(rf"\1{WORD_JOINER}", _BREAKS.sub("\n", prompt.replace("\0", ""))))


def _bare(text: str) -> str:
    """Without blanks around it, and without what stands for a mark of the byte order in front of a text."""
    while (bare := text.strip().strip("\ufeff")) != text:
        text = bare
    return text


def _units(text: str) -> int:
    return len(text.encode("utf-16-be", "surrogatepass")) // 2


def _that_fit(tags: Sequence[str], most: int) -> str:
    """The tags, each behind a blank; of too many the first ones."""
    kept = ""
    for tag in tags:
        if _units(kept) + 1 + _units(tag) > most:
            break
        kept += f" {tag}"
    return kept


def _cut(text: str, most: int) -> str:
    if _units(text) <= most:
        return text
    begin = text.encode("utf-16-be", "surrogatepass")[: 2 * max(0, most - 1)]
    return begin.decode("utf-16-be", "ignore") + _CUT
