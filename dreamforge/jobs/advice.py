"""What to try where the GPU has too little memory, in words. Pure."""

from dreamforge.jobs.presets import DEFAULT_PRESET, PRESETS, Preset

MORE_MEMORY = "Try a smaller model, or a GPU with more memory."
_THRIFTIEST = "low_vram"
_SMALL = 512
"""Pixels a side below which a smaller image saves too little to be worth a try."""


def smaller_size(width: int, height: int) -> tuple[int, int] | None:
    """Three quarters of each side, in multiples of 8; None for what is small already."""
    if min(width, height) <= _SMALL:
        return None
    return width * 3 // 4 // 8 * 8, height * 3 // 4 // 8 * 8


def thriftier_presets(preset: Preset) -> list[Preset]:
    """Those that take less memory, the quickest first."""
    wanted = [*([DEFAULT_PRESET] if preset.batch_size > 1 else []), _THRIFTIEST]
    return [PRESETS[name] for name in wanted if name != preset.name]


def try_size(width: int, height: int) -> str:
    """The sentence."""
    return f"Try a smaller size, {width}x{height}."


def try_preset(preset: Preset) -> str:
    """The sentence."""
    how = "slower, with less memory" if preset.name == _THRIFTIEST else "one image at a time"
    return f'Set params.preset to "{preset.name}": {how}.'
