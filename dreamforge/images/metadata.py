"""How an image was made, written into its file and read back.

Two texts: `parameters` in AUTOMATIC1111's form (``modules/processing.py``, ``create_infotext``), which its own web UI,
Forge, ComfyUI's importer and Civitai read, and `dreamforge`, the same as JSON. The rules of the readers:

- the last line begins with `Steps: ` and is a list of `key: value`; a value with a comma, colon or newline is a JSON
  string (``modules/infotext_utils.py``, ``quote`` and ``parse_generation_parameters``);
- ComfyUI's importer wants the line `Negative prompt:`, even an empty one (``src/scripts/pnginfo.ts``, ``importA1111``);
- the model's short hash is the first ten hex digits of its sha256.
"""

import io
import json
import re
import warnings
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from dreamforge.jobs.schedulers import SCHEDULERS

MOST_PIXELS = 64 * 1024 * 1024
_SHORT_HASH = 10
_NEGATIVE = "Negative prompt:"
_FEWEST_FIELDS = 3
_FIELD = re.compile(r'(\w[\w /-]+):\s*("(?:[^"\\]|\\.)+"|[^,]*)(?:,\s*|$)')
# What the readers take for the beginning of the next part, at the start of a line.
_MARKS = re.compile(r"^([\s\ufeff]*)(Negative prompt:|Steps:)", re.MULTILINE | re.IGNORECASE)
_WORD_JOINER = "\u2060"
_MARKED = re.compile(rf"^([\s\ufeff]*){_WORD_JOINER}(?=Negative prompt:|Steps:)", re.MULTILINE | re.IGNORECASE)
_BREAKS = re.compile(r"\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")


@dataclass(frozen=True)
class GenerationParameters:
    """What was drawn and with what.

    ``checkpoint_hash`` is a sha256 in hex; ``memory_savings`` are what the step did without for want of GPU memory.
    """

    prompt: str
    negative_prompt: str
    seed: int
    scheduler: str
    steps: int
    guidance_scale: float
    width: int
    height: int
    model_name: str
    checkpoint_hash: str | None
    job_id: str
    item_index: int
    version: str
    memory_savings: tuple[str, ...] = ()

    def parameters_text(self) -> str:
        """The text of the `parameters` chunk."""
        fields = ", ".join(f"{name}: {_quoted(value)}" for name, value in self._fields().items() if value is not None)
        return f"{_harmless(self.prompt)}\nNegative prompt: {_harmless(self.negative_prompt)}\n{fields}"

    def dreamforge_json(self) -> str:
        """The text of the `dreamforge` chunk."""
        content = asdict(self)
        content["model"] = content.pop("model_name")
        return json.dumps(content, ensure_ascii=False)

    def _fields(self) -> dict[str, object]:
        scheduler = SCHEDULERS[self.scheduler]
        return {
            "Steps": self.steps,
            "Sampler": scheduler.a1111_sampler,
            "Schedule type": scheduler.a1111_schedule,
            "CFG scale": self.guidance_scale,
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model hash": self.checkpoint_hash[:_SHORT_HASH] if self.checkpoint_hash else None,
            "Model": self.model_name or None,
            "Version": f"dreamforge {self.version}",
        }


@dataclass(frozen=True)
class A1111Parameters:
    """A `parameters` text in its parts; ``fields`` are the last line's, as they stand there."""

    prompt: str
    negative_prompt: str
    fields: dict[str, str]


@dataclass(frozen=True)
class ReadMetadata:
    """What a file says: the `parameters` text and the `dreamforge` object, None where there is none."""

    parameters: str | None
    dreamforge: dict[str, Any] | None


def read_png(data: bytes) -> ReadMetadata:
    """Read a PNG's texts back. Raises ``ValueError`` for anything else, and for images over 64 megapixels."""
    try:
        texts = _texts(data)
        own: Any = json.loads(texts["dreamforge"]) if "dreamforge" in texts else None
    except (OSError, SyntaxError, Image.DecompressionBombError, RecursionError) as error:
        raise ValueError("not a readable PNG") from error
    return ReadMetadata(parameters=texts.get("parameters"), dreamforge=own if isinstance(own, dict) else None)


def parse_parameters(text: str) -> A1111Parameters:
    """Take a `parameters` text apart as A1111 does. A text without a line of fields is a prompt alone."""
    *lines, last = text.strip().split("\n")
    pairs: list[tuple[str, str]] = _FIELD.findall(last)
    if len(pairs) < _FEWEST_FIELDS:
        lines, pairs = [*lines, last], []
    stripped = [line.strip() for line in lines]
    border = next((at for at, line in enumerate(stripped) if line.startswith(_NEGATIVE)), len(stripped))
    negative = "\n".join(stripped[border:]).removeprefix(_NEGATIVE)
    fields = {name: _unquoted(value) for name, value in pairs}
    return A1111Parameters(
        prompt=_MARKED.sub(r"\1", "\n".join(stripped[:border]).strip()),
        negative_prompt=_MARKED.sub(r"\1", negative.strip()),
        fields=fields,
    )


def _texts(data: bytes) -> dict[str, str]:
    with warnings.catch_warnings():
        # Pillow only warns of an image that our own limit refuses.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(data), formats=["PNG"])
    with image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels are too many")
        # Chunks may stand behind the pixels; reading those is what finds them.
        image.load()
        return {str(key): value for key, value in image.info.items() if isinstance(value, str)}


def _unquoted(value: str) -> str:
    if not (value.startswith('"') and value.endswith('"')):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def _harmless(prompt: str) -> str:
    """A prompt whose lines cannot pass for the parts behind it: a word joiner, which is no white space to any reader
    and has no width, stands before such a beginning.

    The `dreamforge` chunk holds the prompt as it was.
    """
    return _MARKS.sub(f"\\1{_WORD_JOINER}\\2", _BREAKS.sub("\n", prompt)).strip()
