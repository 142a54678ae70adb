r"""From prompts to what the UNet reads: any length, with A1111's weights.

========================== ==========================================================================================
`(word)` `((word))`        weight 1.1, 1.21, ...
`[word]`                   weight 1/1.1
`(a few words:1.3)`        that weight; within other brackets they multiply
`\(` `\)` `\[` `\]` `\\`   the character itself
========================== ==========================================================================================

Everything else is text: a bracket without its other half or with nothing in it, `<lora:name:0.6>`, `BREAK`, `AND`,
`[from:to:when]`, and compel's own syntax. compel cuts a long prompt into chunks that the text encoders can take, at
phrases where it can, and applies the weights: a token's embedding is moved away from that of an empty prompt, or
towards it. Its parser is not used. It reads another grammar, `(word)1.3` and `word++`, in which "C++" and quoted words
are commands, and refuses what does not fit it.

A prompt that is short and has no weights is `StableDiffusionXLPipeline.encode_prompt`'s affair, and takes no compel.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch

_ROUND, _SQUARE = 1.1, 1 / 1.1
_HEAVIEST = 10.0
"""Far past it float16 overflows, and nothing is left of the image long before."""
_MARK = re.compile(r"\\[()\[\]\\]|[(\[\])]|:\s*+([+-]?(?:\d++(?:\.\d*+)?|\.\d++))\s*+\)")


@dataclass
class Fragment:
    """A piece of a prompt, and how much it counts."""

    text: str
    weight: float = 1.0


@torch.no_grad()
def encode(
    pipeline: Any, *, prompt: str, negative_prompt: str, is_guided: bool, device: str
) -> dict[str, torch.Tensor]:
    """The embeddings of one image, by the names of the pipeline's arguments; the negative ones only when guided.

    Shapes are 1 x 77·n x 2048 and, pooled, 1 x 1280 for SDXL; both prompts have the same n. ``device`` is where they
    are wanted and where the encoders compute, which may be elsewhere until they are needed.
    """
    prompts = [weighted(prompt), weighted(negative_prompt)] if is_guided else [weighted(prompt)]
    if all(_is_plain(fragments, pipeline) for fragments in prompts):
        texts = [fragments[0].text for fragments in prompts]
        return _plain(pipeline, texts, device=device)
    # One encoder after the other: where models take turns on the GPU, the last one makes room for the UNet.
    first = _hidden_states(_compel(pipeline.tokenizer, pipeline.text_encoder, device), prompts)
    second_encoder = _compel(pipeline.tokenizer_2, pipeline.text_encoder_2, device)
    second = _hidden_states(second_encoder, prompts)
    texts = ["".join(fragment.text for fragment in fragments) for fragments in prompts]
    pooled = [second_encoder.conditioning_provider.get_pooled_embeddings([text]) for text in texts]
    dtype = pipeline.text_encoder_2.dtype
    embeddings = [torch.cat(both, dim=-1).to(dtype) for both in zip(first, second, strict=True)]
    names = ("prompt_embeds", "negative_prompt_embeds"), ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    # Unguided, the second name of each has no value.
    return dict(zip(names[0], embeddings, strict=False)) | dict(zip(names[1], pooled, strict=False))


def _is_plain(fragments: list[Fragment], pipeline: Any) -> bool:
    """Without weights, and no longer than the text encoders take at once."""
    if len(fragments) != 1 or fragments[0].weight != 1.0:
        return False
    tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2)
    return all(len(each(fragments[0].text).input_ids) <= each.model_max_length for each in tokenizers)


def _plain(pipeline: Any, texts: list[str], *, device: str) -> dict[str, torch.Tensor]:
    positive, negative, pooled, negative_pooled = pipeline.encode_prompt(
        prompt=texts[0],
        negative_prompt=texts[-1],
        device=torch.device(device),
        do_classifier_free_guidance=len(texts) > 1,
    )
    embeddings = {"prompt_embeds": positive, "pooled_prompt_embeds": pooled}
    if len(texts) > 1:
        embeddings |= {"negative_prompt_embeds": negative, "negative_pooled_prompt_embeds": negative_pooled}
    return embeddings


def weighted(prompt: str) -> list[Fragment]:
    r"""The prompt in fragments, neighbours of the same weight in one.

    The grammar is that of `parse_prompt_attention` in AUTOMATIC1111's ``modules/prompt_parser.py``, but for brackets
    that are left open or hold nothing, which are text here. Weights are held to -10..10.

    >>> weighted(r"a (red:1.5) \(small\) fox :)")
    [Fragment(text='a ', weight=1.0), Fragment(text='red', weight=1.5), Fragment(text=' (small) fox :)', weight=1.0)]
    """
    weights, fragments = [1.0], [Fragment("")]
    for part in _parts(prompt):
        match part:
            case None:
                weights.pop()
            case str():
                _add(part, weights[-1], fragments)
            case factor:
                weights.append(_held(weights[-1] * factor))
    return fragments if fragments[0].text or len(fragments) == 1 else fragments[1:]


def _add(text: str, weight: float, fragments: list[Fragment]) -> None:
    if text and weight == fragments[-1].weight:
        fragments[-1].text += text
    elif text:
        fragments.append(Fragment(text, weight))


def _parts(prompt: str) -> list[str | float | None]:
    """Text, a weight where one begins, None where the last one ends."""
    parts: list[str | float | None] = []
    opened: list[int] = []
    end, last_word = 0, -1
    for mark in [*_MARK.finditer(prompt), None]:
        parts.append(prompt[end : mark.start() if mark else None])
        last_word = len(parts) - 1 if str(parts[-1]).strip() else last_word
        if mark is None:
            break
        end, is_escaped = mark.end(), mark[0].startswith("\\")
        begin = opened.pop() if not is_escaped and _closes(mark[0], parts, opened) else len(parts)
        if mark[0] in ("(", "["):
            # Text, until its other half is found.
            opened.append(begin)
            parts.append(mark[0])
        elif begin < last_word:
            parts[begin] = _factor(mark)
            parts.append(None)
        else:
            last_word = len(parts)
            parts.append(mark[0][1:] if is_escaped else mark[0])
    return parts


def _closes(mark: str, parts: list[str | float | None], opened: list[int]) -> bool:
    return mark[-1] in ")]" and bool(opened) and parts[opened[-1]] == ("[" if mark == "]" else "(")


def _factor(mark: re.Match[str]) -> float:
    if mark[1]:
        return _held(float(mark[1]))
    return _SQUARE if mark[0] == "]" else _ROUND


def _held(weight: float) -> float:
    return min(max(weight, -_HEAVIEST), _HEAVIEST)


def _compel(tokenizer: Any, text_encoder: Any, device: str) -> Any:
    from compel import (  # noqa: PLC0415 - most prompts take none of it
        Compel,
        ReturnedEmbeddingsType,
        SplitLongTextMode,
    )

    # Its annotations allow for a provider of several encoders, which has none of the methods used here.
    return Compel(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        # SDXL was trained on these, of both encoders.
        returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
        truncate_long_prompts=False,
        split_long_text_mode=SplitLongTextMode.PHRASES,
        device=device,
    )


def _hidden_states(compel: Any, prompts: list[list[Fragment]]) -> list[torch.Tensor]:
    """Of each prompt, all of one length.

    Weights below 1 are applied as those above are. What compel would do for those encodes the whole prompt again for
    each such fragment, cannot place every fragment, takes negative weights for 0, and moves the result to where an
    offloaded encoder's weights are.
    """
    provider = compel.conditioning_provider
    states: list[torch.Tensor] = []
    for fragments in prompts:
        texts, weights = [fragment.text for fragment in fragments], [fragment.weight for fragment in fragments]
        tokens, token_weights, _ = provider.get_token_ids_and_expand_weights(texts, weights, device=compel.device)
        states.append(provider.build_weighted_embedding_tensor(tokens, token_weights, device=compel.device))
    return compel.pad_conditioning_tensors_to_same_length(states)
