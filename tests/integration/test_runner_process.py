"""The real runner in its own process, drawing with the tiny model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from dreamforge.errors import Cancelled, GpuError, ModelCorrupt, ModelIncompatible
from dreamforge.jobs.channel import ChannelClosed
from dreamforge.jobs.frames import (
    Acknowledge,
    BeginItems,
    EndOfItems,
    ItemDrawn,
    Message,
    ModelLoaded,
    PrepareStep,
    Progress,
    Ready,
    StepDone,
    StepFailed,
    Stop,
)
from dreamforge.jobs.progress import Stage, item_progress
from dreamforge.runners.protocol import Runner
from dreamforge.worker.child import RunnerProcess

pytestmark = pytest.mark.timeout(180)

ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2]), "HOME": os.environ["HOME"]}
PARAMS: dict[str, Any] = {
    "prompt": "a fox",
    "negative_prompt": "blurry",
    "width": 64,
    "height": 64,
    "steps": 3,
    "guidance_scale": 6.5,
    "scheduler": "euler",
}
PATIENCE = 60.0
Kind = TypeVar("Kind", bound=Message)


class Conversation:
    """A runner and everything it has said."""

    def __init__(self, runner: RunnerProcess) -> None:
        self.runner = runner
        self.heard: list[Message] = []

    def until(self, kind: type[Kind]) -> Kind:
        """Listen until a message of this kind; a failure that was not waited for ends the test."""
        while True:
            message = self.runner.channel.receive(timeout=PATIENCE)
            self.heard.append(message)
            if isinstance(message, kind):
                return message
            assert not isinstance(message, StepFailed), f"{message}\n{self.runner.output_tail()}"

    def draw(self, item_index: int, *, seed: int) -> ItemDrawn:
        self.runner.channel.send(BeginItems(item_indexes=[item_index], seeds=[seed]))
        return self.until(ItemDrawn)

    def finish(self) -> StepDone:
        self.runner.channel.send(EndOfItems())
        done = self.until(StepDone)
        self.acknowledge()
        return done

    def acknowledge(self) -> None:
        self.runner.channel.send(Acknowledge())

    def progress(self) -> list[tuple[int, Stage, float]]:
        frames = [message for message in self.heard if isinstance(message, Progress)]
        return [(frame.item_index, Stage(frame.stage), frame.stage_progress) for frame in frames]


@contextmanager
def _conversation(
    model: Path, *, device: str = "cpu", environment: dict[str, str] | None = None, **params: Any
) -> Generator[Conversation]:
    with RunnerProcess(environment=environment or ENVIRONMENT) as runner:
        runner.channel.send(_call(model, device=device, **params))
        yield Conversation(runner)


def _call(model: Path, *, device: str = "cpu", **params: Any) -> PrepareStep:
    return PrepareStep(step="generate", model_kind="sdxl", model_path=str(model), device=device, params=PARAMS | params)


def _drawn(model: Path, seeds: dict[int, int], **params: Any) -> dict[int, bytes]:
    """Pixels by item index, of one runner drawing these items in this order."""
    with _conversation(model, **params) as talk:
        talk.until(ModelLoaded)
        pixels = {index: talk.draw(index, seed=seed).pixels for index, seed in seeds.items()}
        talk.finish()
        assert talk.runner.wait(PATIENCE) == 0
    return pixels


def _until(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def _is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_step_from_its_call_to_the_end(tiny_model: Path) -> None:
    long_prompt = "狐 fox " * 1365
    with _conversation(tiny_model, width=72, height=88, prompt=long_prompt) as talk:
        ready = talk.until(Ready)
        assert ready.pid == talk.runner.pid
        assert ready.device_name == "cpu"
        assert set(ready.versions) == {"python", "torch", "diffusers", "transformers"}
        loaded = talk.until(ModelLoaded)
        assert 0 < loaded.seconds < PATIENCE
        assert loaded.dtype == "float32"
        # An image is begun on a credit, and never without one.
        with pytest.raises(TimeoutError):
            talk.runner.channel.receive(timeout=0.5)
        for index, seed in enumerate((40, 41)):
            image = talk.draw(index, seed=seed)
            assert (image.item_index, image.seed) == (index, seed)
            assert (image.width, image.height, len(image.pixels)) == (72, 88, 72 * 88 * 3)
            assert set(image.timings) == {"encode_prompt", "denoise", "decode"}
            assert all(seconds >= 0 for seconds in image.timings.values())
        talk.runner.channel.send(EndOfItems())
        assert talk.until(StepDone).peak_memory is None
        assert talk.runner.wait(0.5) is None, "it stays until its last word has been heard"
        talk.acknowledge()
        assert talk.runner.wait(PATIENCE) == 0
        # No advice of libraries, no progress bars, no word on the prompt's length.
        assert talk.runner.output_tail() == ""


def test_progress_goes_up_through_the_stages_and_ends_each_denoising_step(tiny_model: Path) -> None:
    with _conversation(tiny_model, steps=4) as talk:
        talk.until(ModelLoaded)
        talk.draw(7, seed=1)
    told = talk.progress()
    assert {index for index, _, _ in told} == {7}
    assert [share for _, stage, share in told if stage is Stage.DENOISE] == [0.25, 0.5, 0.75, 1.0]
    assert list(dict.fromkeys(stage for _, stage, _ in told)) == [Stage.ENCODE_PROMPT, Stage.DENOISE, Stage.DECODE]
    overall = [item_progress(stage, share) for _, stage, share in told]
    assert overall == sorted(overall)


def test_the_same_seed_gives_the_same_pixels_in_another_process_whatever_came_before(tiny_model: Path) -> None:
    three = _drawn(tiny_model, {0: 5, 1: 6, 2: 7})
    alone = _drawn(tiny_model, {2: 7})
    assert alone[2] == three[2]
    assert len(set(three.values())) == 3


def test_a_stop_while_a_batch_is_decoded_is_heard_after_its_images(tiny_model: Path) -> None:
    with _conversation(tiny_model) as talk:
        talk.until(ModelLoaded)
        talk.runner.channel.send(BeginItems(item_indexes=[3, 4], seeds=[1, 2]))
        while talk.until(Progress).stage != Stage.DECODE:
            continue
        talk.runner.channel.send(Stop())
        assert [talk.until(ItemDrawn).item_index for _ in range(2)] == [3, 4]
        assert talk.until(StepFailed).code == Cancelled.code
        talk.acknowledge()
        assert talk.runner.wait(PATIENCE) == 1


def test_a_lora_that_does_not_fit_is_reported_by_its_name(tiny_model: Path, tmp_path: Path) -> None:
    lora = tmp_path / "film.safetensors"
    header = json.dumps({"a.lora_A.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    lora.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    call = replace(_call(tiny_model), loras=[{"name": "film", "path": str(lora), "weight": 1.0}])
    with RunnerProcess(environment=ENVIRONMENT) as runner:
        runner.channel.send(call)
        talk = Conversation(runner)
        failed = talk.until(StepFailed)
        talk.acknowledge()
        assert talk.runner.wait(PATIENCE) == 1
    assert (failed.code, failed.details["lora"]) == (ModelIncompatible.code, "film")


def _prepared(model: Path, **params: Any) -> Runner:
    """The runner without its process, where the process adds nothing but its start."""
    from dreamforge.runners.sdxl import SdxlRunner  # noqa: PLC0415 - torch, only where it is needed

    runner = SdxlRunner(emit=lambda _: None)
    runner.prepare(_call(model, **params))
    return runner


def _without_a_weights_file(model: Path) -> None:
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def _with_a_cut_weights_file(model: Path) -> None:
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    os.truncate(path, path.stat().st_size - 1000)


def _with_a_cut_text_encoder(model: Path) -> None:
    os.truncate(model / "text_encoder" / "model.safetensors", 100)


def _without_a_tokenizer(model: Path) -> None:
    shutil.rmtree(model / "tokenizer_2")


def _of_another_class(model: Path) -> None:
    index = model / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "FluxPipeline"}))


def _of_another_shape(model: Path) -> None:
    config = model / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"block_out_channels": [32, 96]}))


def _with_pickled_weights_only(model: Path) -> None:
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def _gone(model: Path) -> None:
    shutil.rmtree(model)


@pytest.mark.parametrize(
    "damage",
    [
        _without_a_weights_file,
        _with_a_cut_weights_file,
        _with_a_cut_text_encoder,
        _without_a_tokenizer,
        _of_another_class,
        _of_another_shape,
        _with_pickled_weights_only,
        _gone,
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_damaged_model_is_never_loaded(tiny_model: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    with pytest.raises(ModelCorrupt) as caught:
        _prepared(_damaged(tiny_model, tmp_path, damage))
    assert caught.value.details["reason"]


def _damaged(model: Path, folder: Path, damage: Callable[[Path], None]) -> Path:
    damaged = folder / "model"
    shutil.copytree(model, damaged)
    damage(damaged)
    return damaged


@pytest.mark.parametrize("damage", [_without_a_weights_file, _with_a_cut_weights_file])
def test_a_damaged_model_is_reported_as_such(tiny_model: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    model = _damaged(tiny_model, tmp_path, damage)
    with _conversation(model) as talk:
        failed = talk.until(StepFailed)
        talk.acknowledge()
        assert talk.runner.wait(PATIENCE) == 1
    assert failed.code == ModelCorrupt.code
    assert failed.details["reason"]
    assert "Traceback" not in failed.message
    assert str(tmp_path) not in f"{failed.message}{failed.details}"


def test_without_a_gpu_a_step_for_one_is_a_gpu_error(tiny_model: Path) -> None:
    with _conversation(tiny_model, device="cuda", environment=ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": ""}) as talk:
        assert talk.until(StepFailed).code == GpuError.code


def test_what_nobody_foresaw_is_internal_and_its_trace_goes_to_the_output(tiny_model: Path) -> None:
    with _conversation(tiny_model, scheduler="no such one\n" * 500) as talk:
        talk.until(ModelLoaded)
        talk.runner.channel.send(BeginItems(item_indexes=[0], seeds=[1]))
        failed = talk.until(StepFailed)
        # A stop was on its way when the report came: it is passed over.
        talk.runner.channel.send(Stop())
        talk.acknowledge()
        assert talk.runner.wait(PATIENCE) == 1
        talk.runner.stop(0)
        output = talk.runner.output_tail()
    assert failed.code == "internal"
    assert failed.message.startswith("KeyError: ")
    assert len(failed.message) < 600
    assert "Traceback" in output
    assert "Traceback" not in failed.message


def test_it_leaves_when_the_supervisor_closes_its_end(tiny_model: Path) -> None:
    with _conversation(tiny_model) as talk:
        talk.until(ModelLoaded)
        talk.runner.channel.close()
        assert talk.runner.wait(PATIENCE) == 2


def test_what_is_no_frame_ends_it_without_an_answer() -> None:
    with RunnerProcess(environment=ENVIRONMENT) as runner:
        runner.channel.send(EndOfItems())
        assert runner.wait(PATIENCE) == 1
        with pytest.raises(ChannelClosed):
            runner.channel.receive(timeout=5)
        runner.stop(0)
        assert "Traceback" not in runner.output_tail()


def test_a_request_to_end_is_followed_at_once_even_while_it_draws(tiny_model: Path) -> None:
    with _conversation(tiny_model, steps=150, width=256, height=256) as talk:
        talk.until(ModelLoaded)
        talk.runner.channel.send(BeginItems(item_indexes=[0], seeds=[1]))
        talk.until(Progress)
        began = time.monotonic()
        assert talk.runner.stop(PATIENCE) == -signal.SIGTERM
        assert time.monotonic() - began < 3


_SUPERVISOR = """
import json, os, sys
from dreamforge.jobs.frames import ModelLoaded, PrepareStep
from dreamforge.worker.child import RunnerProcess
with RunnerProcess(environment=dict(os.environ)) as runner:
    call = PrepareStep("generate", "sdxl", sys.argv[1], "cpu", json.loads(sys.argv[2]))
    runner.channel.send(call)
    while not isinstance(runner.channel.receive(timeout=60), ModelLoaded):
        pass
    known = sorted({"torch", "diffusers", "transformers"} & set(sys.modules))
    print(json.dumps({"runner": runner.pid, "known": known}), flush=True)
    sys.stdin.read()
"""


@contextmanager
def _supervisor(model: Path, **variables: str) -> Generator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    command = [sys.executable, "-c", _SUPERVISOR, str(model), json.dumps(PARAMS)]
    with subprocess.Popen(
        command, env=ENVIRONMENT | variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def test_it_dies_with_a_killed_supervisor(tiny_model: Path) -> None:
    with _supervisor(tiny_model) as (supervisor, told):
        assert not _is_gone(told["runner"])
        supervisor.kill()
        _until(lambda: _is_gone(told["runner"]))


def test_a_supervisor_holds_no_torch_and_its_runner_no_secret(tiny_model: Path) -> None:
    secrets = {"DREAMFORGE_S3_SECRET_KEY": "hunter2", "AWS_SECRET_ACCESS_KEY": "hunter2", "HF_TOKEN": "hunter2"}
    with _supervisor(tiny_model, **secrets) as (_, told):
        assert told["known"] == []
        seen = Path(f"/proc/{told['runner']}/environ").read_bytes()
        assert b"hunter2" not in seen
        assert b"HF_HUB_OFFLINE=1" in seen


def test_it_dies_with_its_supervisor_even_before_it_has_listened() -> None:
    command = [sys.executable, "-m", "dreamforge.runners.process", "0", "1"]
    started = time.monotonic()
    result = subprocess.run(command, env=ENVIRONMENT, check=False, stdin=subprocess.DEVNULL)
    assert result.returncode == 1
    assert time.monotonic() - started < PATIENCE


def test_it_has_no_network_where_the_kernel_allows_that(tiny_model: Path) -> None:
    with _conversation(tiny_model) as talk:
        talk.until(ModelLoaded)
        kept = [message for message in talk.heard if "keeps its network" in str(message)]
        ours, its = (os.readlink(f"/proc/{pid}/ns/net") for pid in ("self", talk.runner.pid))  # noqa: PTH115 - no path
        interfaces = Path(f"/proc/{talk.runner.pid}/net/dev").read_text().splitlines()[2:]
    if kept:
        pytest.skip("this kernel gives no network namespace")
    assert ours != its
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
