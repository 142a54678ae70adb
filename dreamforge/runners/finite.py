"""Weights that are no numbers: of a training that went wrong, or too large for the type that they are read as."""

from collections.abc import Iterable

import torch


def endless(weights: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first weight with a NaN or an infinity in it.

    A least and a greatest value tell of both, and take one pass without a copy: less than reading the file took.
    """
    for name, tensor in weights:
        if tensor.is_floating_point() and tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
            return name
    return None
