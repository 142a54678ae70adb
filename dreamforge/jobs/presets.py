"""Presets: how a step trades memory, speed and quality, by one word. Pure.

================ ==== ===== ========= ============= ================================== =============================
preset           steps batch UNet      VAE           memory                             for
================ ==== ===== ========= ============= ================================== =============================
`fast`           20   4     float16   bfloat16      channels last                      throughput
`balanced`       *    1     float16   float32       channels last                      everyday use
`quality`        50   1     float16   float32       channels last                      the last bit of detail
`low_vram`       *    1     float16   float32       tiles, slices, models one by one   cards of 8 GB and less
================ ==== ===== ========= ============= ================================== =============================

A star is the model's own default. Steps are a default too: `params.steps` wins. Element types are those of a GPU, where
weights that come in bfloat16 stay that; a CPU computes in float32. SDXL's own VAE overflows in float16, hence float32,
or bfloat16, whose range is as wide. Attention is torch's `scaled_dot_product_attention` everywhere, which takes the
fastest kernel that the GPU has.
"""

from dataclasses import dataclass

from dreamforge.jobs.memory_ladder import MODEL_OFFLOAD_RUNG

DEFAULT_PRESET = "balanced"


@dataclass(frozen=True)
class Preset:
    """One of them. ``version`` is raised whenever what it stands for changes.

    ``steps`` is None for the model's own default; ``batch_size`` how many images are denoised at once, at most;
    ``vae_dtype`` the VAE's element type on a GPU; ``rung`` where on the memory ladder it begins.
    """

    name: str
    title: str
    version: int
    steps: int | None = None
    batch_size: int = 1
    vae_dtype: str = "float32"
    is_channels_last: bool = True
    rung: int = 0


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("balanced", "Balanced", version=1),
        Preset("fast", "Fast", version=1, steps=20, batch_size=4, vae_dtype="bfloat16"),
        Preset("quality", "Quality", version=1, steps=50),
        # Channels last gains nothing where the time goes into moving weights.
        Preset("low_vram", "Low memory", version=1, is_channels_last=False, rung=MODEL_OFFLOAD_RUNG),
    )
}


def preset_of(params: dict[str, object]) -> Preset:
    """The preset of a job's parameters. One that is not known any more means the default."""
    return PRESETS.get(str(params.get("preset")), PRESETS[DEFAULT_PRESET])


def batch_size(preset: Preset, *, rung: int) -> int:
    """Images to denoise at once on a rung of the memory ladder: from the first rung on, one."""
    return preset.batch_size if rung == 0 else 1
