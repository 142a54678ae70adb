"""`dreamforge generate`: from a prompt to files."""

import contextlib
import json
import math
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dreamforge.cli.drawing import CountOption, FolderOption, draw
from dreamforge.cli.service import JsonOption, UrlOption, service
from dreamforge.client import calls

_MODELS_OWN = "the model's"
_Negative = Annotated[str | None, typer.Option(help="What to keep out of the images.", show_default=False)]
_Pixels = Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.", show_default=_MODELS_OWN)]
_Steps = Annotated[int | None, typer.Option(help="Denoising steps.", show_default=_MODELS_OWN)]
_Guidance = Annotated[float | None, typer.Option(help="How closely to follow the prompt.", show_default=_MODELS_OWN)]
_Scheduler = Annotated[str | None, typer.Option(help="How noise is taken away.", show_default=_MODELS_OWN)]
_Seed = Annotated[int | None, typer.Option(help="Image i is drawn with seed + i.", show_default="each draws its own")]
_Model = Annotated[str | None, typer.Option(help="An id, a name, or name@version.", show_default="the default one")]
_Lora = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME[:WEIGHT]", help="A LoRA, and how much of it; repeat it.", show_default=False),
]
_Vae = Annotated[str | None, typer.Option(help="A VAE in place of the model's own.", show_default=False)]
_Preset = Annotated[str | None, typer.Option(help="balanced, fast, quality or low_vram.", show_default=_MODELS_OWN)]
_Format = Annotated[str | None, typer.Option("--format", help="png, jpeg or webp.", show_default="png")]
_Param = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Any other parameter of the model; repeat it.", show_default=False),
]
_Priority = Annotated[Literal["low", "normal", "high"], typer.Option(help="Higher ones go first.")]
_NoWait = Annotated[bool, typer.Option("--no-wait", help="Leave the job running; print its id and save nothing.")]


def generate(  # noqa: PLR0913 - a command's options are its arguments
    prompt: Annotated[str, typer.Argument(help="What to draw.", show_default=False)],
    count: CountOption = 1,
    output: FolderOption = Path(),
    negative: _Negative = None,
    width: _Pixels = None,
    height: _Pixels = None,
    steps: _Steps = None,
    guidance: _Guidance = None,
    scheduler: _Scheduler = None,
    seed: _Seed = None,
    model: _Model = None,
    lora: _Lora = None,
    vae: _Vae = None,
    preset: _Preset = None,
    file_format: _Format = None,
    param: _Param = None,
    priority: _Priority = "normal",
    no_wait: _NoWait = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Draw images and save them as they are finished. Their paths go to standard output, one a line.

    Exit code 0: all are saved; 1: it failed; 130: interrupted.
    """
    params: dict[str, Any] = {
        "negative_prompt": negative,
        "width": width,
        "height": height,
        "steps": steps,
        "guidance_scale": guidance,
        "scheduler": scheduler,
        "seed": seed,
        "loras": [_weighted(each) for each in lora] if lora else None,
        "vae": vae,
        "preset": preset,
        "format": file_format,
        **_named_values(param or []),
    }
    with service(url) as client:
        submit = partial(
            client.submit,
            prompt,
            count=count,
            model=model,
            priority=priority,
            params=params,
            idempotency_key=calls.new_key(),
        )
        draw(submit, client=client, folder=output, as_json=as_json, no_wait=no_wait)


def _weighted(given: str) -> dict[str, Any]:
    name, colon, weight = given.partition(":")
    with contextlib.suppress(ValueError):
        if name and math.isfinite(number := float(weight) if colon else 1.0):
            return {"id": name, "weight": number}
    raise typer.BadParameter(f"{given!r} is not NAME[:WEIGHT].", param_hint="--lora")


def _named_values(given: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE.", param_hint="--param")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values
