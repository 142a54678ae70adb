"""What a model's files say of it beside its weights, and what is told of those that say nothing or nonsense."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dreamforge.errors import ModelCorrupt
from dreamforge.jobs.frames import PrepareStep

pytestmark = [
    pytest.mark.timeout(180),
    # What numpy advises diffusers; the runner's own process shows none.
    pytest.mark.filterwarnings("ignore"),
]

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
from dreamforge.runners.loading import load  # noqa: E402 - torch, only where it is installed
from dreamforge.runners.scheduling import scheduler_for  # noqa: E402 - likewise
from dreamforge.runners.sdxl import SdxlRunner  # noqa: E402 - likewise
from dreamforge.runners.vocabulary import TOKENS  # noqa: E402 - likewise
from tests.integration.checkpoints import difference, draw, edit, of_file, of_folder  # noqa: E402 - likewise

SCHEDULER = Path("scheduler") / "scheduler_config.json"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def _stating(call: PrepareStep, **metadata: str) -> PrepareStep:
    path = Path(call.model_path)
    named = {f"modelspec.{name}": value for name, value in metadata.items()}
    safetensors.save_file(safetensors.load_file(path), path, metadata=named)
    return call


@pytest.mark.parametrize(
    ("stated", "predicts"), [("v", "v_prediction"), ("v_prediction", "v_prediction"), ("epsilon", "epsilon")]
)
def test_what_a_file_states_of_its_prediction_counts(model: Path, tmp_path: Path, stated: str, predicts: str) -> None:
    call = _stating(of_file(of_folder(model), model, tmp_path), prediction_type=stated)
    assert load(call).scheduler.config.prediction_type == predicts
    is_other = difference(draw(call), draw(of_folder(model))) > 16
    assert is_other == (predicts == "v_prediction")


def test_a_file_is_heeded_where_its_configuration_says_nothing(model: Path, tmp_path: Path) -> None:
    def predict_velocity(weights: dict[str, Any]) -> None:
        weights["v_pred"] = weights["ztsnr"] = torch.tensor([])

    call = of_file(of_folder(model), model, tmp_path, change=predict_velocity)
    config = json.loads((model / SCHEDULER).read_text())
    del config["prediction_type"], config["rescale_betas_zero_snr"]
    (model / SCHEDULER).write_text(json.dumps(config))
    drawn_by = scheduler_for("dpmpp_2m", load(call).scheduler.config, steps=2).config
    assert (drawn_by.prediction_type, drawn_by.rescale_betas_zero_snr) == ("v_prediction", True)


@pytest.mark.parametrize(
    "sampler", [{"use_karras_sigmas": True, "use_exponential_sigmas": True}, {"use_beta_sigmas": True}], ids=str
)
def test_the_sampler_that_a_model_was_saved_with_is_not_the_one_it_is_drawn_by(
    model: Path, sampler: dict[str, Any]
) -> None:
    plain = draw(of_folder(model))
    edit(model / SCHEDULER, **sampler)
    assert (draw(of_folder(model)) == plain).all()


def test_a_tokenizer_without_a_configuration_takes_what_the_encoders_take(model: Path) -> None:
    call = of_folder(model)
    plain = draw(call)
    for name in ("tokenizer", "tokenizer_2"):
        (model / name / "tokenizer_config.json").unlink()
    assert load(call).tokenizer.model_max_length == TOKENS
    assert (draw(call) == plain).all()
    long = replace(call, params=call.params | {"prompt": "a fox in the snow, " * 20})
    assert draw(long).size == plain.size


def _scheduler(**changes: Any) -> Callable[[Path], None]:
    return lambda model: edit(model / SCHEDULER, **changes)


def _without(name: str) -> Callable[[Path], None]:
    return lambda model: shutil.rmtree(model / name)


def _another_schedulers(model: Path) -> None:
    edit(model / "model_index.json", scheduler=["diffusers", "EDMEulerScheduler"])


def _vae_for_an_encoder(model: Path) -> None:
    shutil.copy(model / "vae" / "diffusion_pytorch_model.safetensors", model / "text_encoder" / "model.safetensors")


def _spoilt(part: str, value: float) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (path,) = (model / part).glob("*.safetensors")
        weights = safetensors.load_file(path)
        weights[sorted(weights)[0]].view(-1)[0] = value
        safetensors.save_file(weights, path, metadata={"format": "pt"})

    return change


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "spacing": (_scheduler(timestep_spacing="even"), "timestep_spacing even"),
    "prediction": (_scheduler(prediction_type="flow_prediction"), "flow_prediction"),
    "betas": (_scheduler(beta_schedule="cubic"), "cubic"),
    "no-scheduler": (_without("scheduler"), "scheduler"),
    "no-tokenizer": (_without("tokenizer"), "tokenizer"),
    "no-second-tokenizer": (_without("tokenizer_2"), "tokenizer_2"),
    "no-vae": (_without("vae"), "vae"),
    "another-kind": (_another_schedulers, "EDMEulerScheduler"),
    "vae-for-an-encoder": (_vae_for_an_encoder, "text_encoder"),
    **{
        f"{part}-of-{value}": (_spoilt(part, value), f"{part} has weights that are no numbers")
        for part in ("unet", "vae", "text_encoder", "text_encoder_2")
        for value in (float("nan"), float("-inf"))
    },
}


@pytest.mark.parametrize(("change", "named"), CHANGES.values(), ids=CHANGES.keys())
def test_a_folder_that_cannot_be_drawn_with_is_corrupt_before_it_is_drawn(
    model: Path, change: Callable[[Path], None], named: str
) -> None:
    change(model)
    with pytest.raises(ModelCorrupt) as caught:
        SdxlRunner(emit=lambda _: None).prepare(of_folder(model))
    assert named in caught.value.details["reason"]
    assert str(model) not in caught.value.details["reason"]
