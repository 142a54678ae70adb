"""How far an item, and a job, has come."""

from enum import StrEnum


class Stage(StrEnum):
    """The stages of one item, in order."""

    ENCODE_PROMPT = "encode_prompt"
    DENOISE = "denoise"
    DECODE = "decode"
    SAVE = "save"


STAGE_WEIGHTS: dict[Stage, float] = {
    Stage.ENCODE_PROMPT: 0.02,
    Stage.DENOISE: 0.88,
    Stage.DECODE: 0.06,
    Stage.SAVE: 0.04,
}


def item_progress(stage: Stage, stage_progress: float) -> float:
    """Progress of an item in 0..1: the weights of the stages behind it, and its share of the present one.

    >>> item_progress(Stage.DENOISE, 0.5)
    0.46
    """
    done = 0.0
    for name, weight in STAGE_WEIGHTS.items():
        if name is stage:
            return round(done + weight * min(max(stage_progress, 0.0), 1.0), 6)
        done += weight
    raise AssertionError(stage)
