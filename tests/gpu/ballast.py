"""Holds a GPU's memory until its input ends: `python -m tests.gpu.ballast MIB`, where as many MiB stay free."""

import sys

import torch

_MIB = 2**20


def hold(free_mib: int) -> torch.Tensor:
    """All but so many MiB of what is free on the first GPU. What is held is held by an allocation like any other."""
    free, _ = torch.cuda.mem_get_info()
    return torch.empty(max(0, free - free_mib * _MIB), dtype=torch.uint8, device="cuda")


if __name__ == "__main__":
    held = hold(int(sys.argv[1]))
    sys.stdout.write(f"{held.numel() // _MIB}\n")
    sys.stdout.flush()
    sys.stdin.read()
