"""Weights that are of no use here, called by their names, so that whoever brings them knows what they have."""

import re
from collections.abc import Iterable

_STRANGERS = (
    (re.compile(r"(^|[._])double_blocks[._]\d+[._](img|txt)|single_transformer_blocks[._]\d"), "a Flux model"),
    (re.compile(r"(^|[._])joint_blocks[._]\d|(^|[._])joint_transformer_blocks[._]\d"), "a Stable Diffusion 3 model"),
    (re.compile(r"(^|\.)double_layers\.\d"), "an AuraFlow model"),
    (re.compile(r"^(control_model\.|controlnet_|control_all_)"), "a ControlNet"),
    (re.compile(r"(^|\.)motion_modules\."), "an AnimateDiff motion module"),
    (re.compile(r"^(image_proj|ip_adapter)\."), "an IP-Adapter"),
    (re.compile(r"^(clip_[lg]|emb_params)$|^string_to_param"), "a textual inversion embedding"),
    (re.compile(r"^(body\.\d+\.(rdb1|conv)|model\.\d+\.(sub|weight)|params_ema|conv_first\.)"), "an upscaler"),
    (re.compile(r"^(edm_mean|edm_std)$"), "a Playground 2.5 model"),
    (re.compile(r"^(down_blocks|mid_block|up_blocks)\."), "a UNet alone, without text encoders and VAE"),
    (re.compile(r"^(text_model|text_projection)\b"), "a text encoder alone"),
    (re.compile(r"^model\.(embed_tokens|layers\.\d+\.self_attn)"), "a language model"),
)


def stranger(names: Iterable[str]) -> str | None:
    """What these tensors are in words, as "a ControlNet"; None when they are not known."""
    known = list(names)
    return next((words for pattern, words in _STRANGERS if any(pattern.search(name) for name in known)), None)
