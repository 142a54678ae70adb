"""How far an item, and a job, has come."""

from enum import StrEnum


class Stage(StrEnum):
    """The stages of one image, in order."""

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


class DownloadStage(StrEnum):
    """The stages of a model that is downloaded, in order."""

    RESOLVE = "resolve"
    DOWNLOAD = "download"
    INSPECT = "inspect"
    PUBLISH = "publish"
    REGISTER = "register"


DOWNLOAD_WEIGHTS: dict[DownloadStage, float] = {
    DownloadStage.RESOLVE: 0.01,
    DownloadStage.DOWNLOAD: 0.84,
    DownloadStage.INSPECT: 0.02,
    DownloadStage.PUBLISH: 0.12,
    DownloadStage.REGISTER: 0.01,
}


def item_progress(stage: Stage | DownloadStage, stage_progress: float) -> float:
    """Progress of an item in 0..1: the weights of the stages behind it, and its share of the present one.

    >>> item_progress(Stage.DENOISE, 0.5)
    0.46
    >>> item_progress(DownloadStage.DOWNLOAD, 0.5)
    0.43
    """
    done = 0.0
    weights = DOWNLOAD_WEIGHTS if isinstance(stage, DownloadStage) else STAGE_WEIGHTS
    for name, weight in weights.items():
        if name is stage:
            return round(done + weight * min(max(stage_progress, 0.0), 1.0), 6)
        done += weight
    raise AssertionError(stage)
