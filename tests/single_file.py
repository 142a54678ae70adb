"""A model's folder as the one file that people share: `write(folder, file)`.

The names are those of Stability's own code: of the UNet and the VAE as diffusers'
``scripts/convert_diffusers_to_original_sdxl.py`` lists them, of the second text encoder as in OpenCLIP
(``open_clip/transformer.py`` in mlfoundations/open_clip), of the prefixes as in Stability-AI/generative-models,
``configs/inference/sd_xl_base.yaml``.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]

_UNET = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
_UNET_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "time_emb_proj.": "emb_layers.1.",
    "conv_shortcut.": "skip_connection.",
}
_VAE_ATTENTION = {"group_norm.": "norm.", "to_q.": "q.", "to_k.": "k.", "to_v.": "v.", "to_out.0.": "proj_out."}
_OPEN_CLIP = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.final_layer_norm.": "ln_final.",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}
_LAYERS_PER_BLOCK = 2


def write(
    folder: Path,
    file: Path,
    *,
    dtype: torch.dtype = torch.float32,
    change: Callable[[Weights], None] = lambda _: None,
) -> Path:
    """Write the model of a folder to one file; ``change`` may spoil its weights before."""
    parts = {
        "model.diffusion_model.": unet_names(_weights(folder / "unet")),
        "first_stage_model.": vae_names(_weights(folder / "vae")),
        "conditioner.embedders.0.transformer.": _clip_names(_weights(folder / "text_encoder")),
        "conditioner.embedders.1.model.": _open_clip_names(_weights(folder / "text_encoder_2")),
    }
    weights = {f"{prefix}{name}": tensor for prefix, part in parts.items() for name, tensor in part.items()}
    # Of no use to anybody, and in every published file.
    weights["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    change(weights)
    save_file({name: _as(tensor, dtype) for name, tensor in weights.items()}, file)
    return file


def unet_names(weights: Mapping[str, torch.Tensor]) -> Weights:
    """The UNet's weights by Stability's names."""
    return {_unet_name(name): tensor for name, tensor in weights.items()}


def vae_names(weights: Mapping[str, torch.Tensor]) -> Weights:
    """The VAE's weights by Stability's names, its attention as the convolutions that it is there."""
    blocks = 1 + max(int(found[1]) for name in weights if (found := re.match(r"decoder\.up_blocks\.(\d+)", name)))
    named = {_vae_name(name, blocks): tensor for name, tensor in weights.items()}
    return {
        name: tensor[:, :, None, None] if re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", name) else tensor
        for name, tensor in named.items()
    }


def _unet_name(name: str) -> str:
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name):
        side, block, kind, layer, rest = found.groups()
        return _unet_block_name(side, int(block), kind, int(layer), rest)
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name):
        kind, layer, rest = found.groups()
        position = 1 if kind == "attentions" else 2 * int(layer)
        return f"middle_block.{position}.{_renamed(rest, _UNET_RESNET) if kind == 'resnets' else rest}"
    return _renamed(name, _UNET)


def _unet_block_name(side: str, block: int, kind: str, layer: int, rest: str) -> str:
    # A block of Stability's is one layer: what makes it larger or smaller is one more, or the last one's end.
    position = block * (_LAYERS_PER_BLOCK + 1) + layer
    if kind == "resnets":
        rest = _renamed(rest, _UNET_RESNET)
    match side, kind:
        case "down", "downsamplers":
            return f"input_blocks.{(block + 1) * (_LAYERS_PER_BLOCK + 1)}.0.{rest.replace('conv.', 'op.')}"
        case "down", _:
            return f"input_blocks.{position + 1}.{int(kind == 'attentions')}.{rest}"
        case _, "upsamplers":
            # Behind the attention of the block's last layer; a block without attention has it one place before.
            return f"output_blocks.{position + _LAYERS_PER_BLOCK}.{2 if block == 0 else 1}.{rest}"
        case _:
            return f"output_blocks.{position}.{int(kind == 'attentions')}.{rest}"


def _vae_name(name: str, blocks: int) -> str:
    name = re.sub(
        r"mid_block\.attentions\.0\.(.*)", lambda found: f"mid.attn_1.{_renamed(found[1], _VAE_ATTENTION)}", name
    )
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)", r"down.\1", name)
    name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{blocks - 1 - int(found[1])}", name)
    for ours, theirs in (
        ("resnets.", "block."),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
    ):
        name = name.replace(ours, theirs)
    return name


def _clip_names(weights: Mapping[str, torch.Tensor]) -> Weights:
    return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in weights.items()}


def _open_clip_names(weights: Mapping[str, torch.Tensor]) -> Weights:
    named: Weights = {"text_projection": weights["text_projection.weight"].T, "logit_scale": torch.tensor(4.6)}
    for name, tensor in weights.items():
        if found := re.match(r"text_model\.encoder\.layers\.(\d+)\.(.*)", name):
            layer, rest = f"transformer.resblocks.{found[1]}", found[2]
            if projection := re.match(r"self_attn\.q_proj\.(weight|bias)", rest):
                # OpenCLIP keeps the three in one.
                ours = [name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
                named[f"{layer}.attn.in_proj_{projection[1]}"] = torch.cat([weights[each] for each in ours])
            elif not re.match(r"self_attn\.[kv]_proj", rest):
                named[f"{layer}.{_renamed(rest, _OPEN_CLIP_LAYER)}"] = tensor
        elif name != "text_projection.weight":
            named[_renamed(name, _OPEN_CLIP)] = tensor
    return named


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for ours, theirs in table.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _weights(folder: Path) -> Weights:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def _as(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
