"""CLIP's tokenizers from what is published of them, where a model brings none of its own.

`sdxl_base/` holds the configurations of SDXL 1.0 (stabilityai/stable-diffusion-xl-base-1.0 on Hugging Face), without
weights, and once for both tokenizers the byte-pair merges of CLIP. A vocabulary follows from its merges: see
``SimpleTokenizer`` in openai/CLIP, clip/simple_tokenizer.py.
"""

import gzip
import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import CLIPTokenizer

SDXL_BASE = Path(__file__).with_name("sdxl_base")
"""The components' configurations of SDXL 1.0, in diffusers' layout."""
START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = 77
"""What CLIP's text encoders take at once, start and end included. A tokenizer without a configuration knows no end."""
_MERGES = SDXL_BASE / "merges.txt.gz"
_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))


def tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of a folder; where it has a configuration but no vocabulary, with CLIP's."""
    if has_vocabulary(folder):
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True, model_max_length=TOKENS)
    merges = clip_merges()
    settings: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = {name: _token(settings[name]) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    make: Any = CLIPTokenizer  # its annotations know neither merges as pairs nor tokens with settings
    return make(vocab=vocabulary(merges), merges=merges, model_max_length=TOKENS, **tokens)


def has_vocabulary(folder: Path) -> bool:
    """Whether the folder of a tokenizer says which words it knows."""
    return any(all((folder / name).is_file() for name in names) for names in _FILES)


def clip_merges() -> list[tuple[str, str]]:
    """CLIP's 48,894 merges, the most frequent first."""
    lines = gzip.decompress(_MERGES.read_bytes()).decode().splitlines()
    # The first line says what version of the format follows.
    pairs = (line.split() for line in lines[1:])
    return [(left, right) for left, right in pairs]


def vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """CLIP's layout: 256 bytes, 256 bytes that end a word, what the merges make of them, two specials."""
    letters = _letters()
    merged = (left + right for left, right in merges)
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *merged, START, END]
    return {token: index for index, token in enumerate(tokens)}


def _letters() -> list[str]:
    """Bytes stand for the printable characters that GPT-2's byte-level encoding gives them
    (`bytes_to_unicode` in openai/gpt-2, src/encoder.py).
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(code) for code in printable] + [chr(256 + index) for index in range(256 - len(printable))]


def _token(setting: str | dict[str, Any]) -> str | AddedToken:
    if isinstance(setting, str):
        return setting
    return AddedToken(**{name: value for name, value in setting.items() if name != "__type"})
