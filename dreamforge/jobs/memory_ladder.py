"""What a step does without, one rung after the other, when the GPU has too little memory for it. Pure.

=== ===================================== ===================================================================
 0  nothing                               as fast as it goes
 1  `vae_tiling`                          one image at a time, decoded in tiles: less memory after denoising
 2  + `vae_slicing`                       several images are decoded one by one
 3  + `model_offload`                     of text encoders, UNet and VAE one at a time is on the GPU
 4  `sequential_offload` instead of that  one layer at a time: the least memory, and many times slower
=== ===================================== ===================================================================

Each rung is tried in a process of its own: what one that ran out of memory holds is given back by its end alone. A
preset may begin on a higher one.
"""

from dreamforge.jobs.outcome import Failure

VAE_TILING = "vae_tiling"
VAE_SLICING = "vae_slicing"
MODEL_OFFLOAD = "model_offload"
SEQUENTIAL_OFFLOAD = "sequential_offload"

_SAVINGS = (
    (),
    (VAE_TILING,),
    (VAE_TILING, VAE_SLICING),
    (VAE_TILING, VAE_SLICING, MODEL_OFFLOAD),
    (VAE_TILING, VAE_SLICING, SEQUENTIAL_OFFLOAD),
)
LAST_RUNG = len(_SAVINGS) - 1
MODEL_OFFLOAD_RUNG = 3
"""The first one on which models take turns on the GPU."""


def savings(rung: int) -> tuple[str, ...]:
    """What saves memory on a rung, 0 to ``LAST_RUNG``."""
    return _SAVINGS[rung]


def out_of_memory(failure: Failure, *, rung: int, may_degrade: bool) -> Failure:
    """The failure that ends a step for good: with the rung it was on, and what could still be tried."""
    left = [] if may_degrade else ['Set options.oom_policy to "degrade": slower, with less memory.']
    return Failure(
        failure.code,
        failure.message,
        {**failure.details, "rung": rung, "savings": list(savings(rung))},
        [*failure.suggestions, *left],
    )
