"""The number format of weights."""

from collections import Counter
from collections.abc import Mapping

from dreamforge.errors import ModelIncompatible
from dreamforge.models.safetensors_header import Tensor

WORDS = {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}
"""The formats that are read, in the words that people use."""

_SHORTENED = ("F8_", "F6_", "F4")


def dtype_of(tensors: Mapping[str, Tensor], *, name: str) -> str:
    """The format of most bytes: `fp16`, `bf16` or `fp32`. Raises ``ModelIncompatible`` for any other.

    One tensor of 8 bits is enough to be refused: its scale, if it has one, is in no agreed place.
    """
    bytes_of: Counter[str] = Counter()
    for tensor in tensors.values():
        bytes_of[tensor.dtype] += tensor.size
    shortened = sorted(dtype for dtype in bytes_of if dtype.startswith(_SHORTENED))
    dtype = shortened[0] if shortened else bytes_of.most_common(1)[0][0]
    if dtype in WORDS:
        return WORDS[dtype]
    told = "fp8" if dtype.startswith("F8_") else dtype
    raise ModelIncompatible(
        f"{name} has weights in {told}; {', '.join(WORDS.values())} can be read. Take the model in one of these.",
        details={"file": name, "dtype": dtype},
    )
