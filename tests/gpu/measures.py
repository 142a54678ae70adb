"""The measurements, each a step in a process of its own."""

import importlib.util
import json
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dreamforge.errors import OutOfMemory
from dreamforge.jobs.frames import PrepareStep
from dreamforge.jobs.presets import DEFAULT_PRESET
from dreamforge.jobs.progress import Stage
from dreamforge.jobs.schedulers import SCHEDULERS
from tests.gpu.card import TOLERANCE_MIB, Card
from tests.gpu.estimate import estimated_bytes
from tests.gpu.findings import Findings, Row
from tests.gpu.program import ProgramFailed, run, start, tail
from tests.gpu.step import Drawn, Loading, Step, StepRefused
from tests.gpu.subject import Subject

_MIB = 2**20
_SEED, _OTHER_SEED = 5, 6
_BATCH = 4
_LEFT_FREE_MIB = 8192
"""Beside the ballast: too little for a model of full size and an image at 1024x1024, enough for one with `low_vram`."""


@dataclass(frozen=True)
class Measured:
    """A step: its batches, and the GPU's memory in MiB before it, with everything drawn, and after it."""

    loading: Loading
    batches: list[Drawn]
    peak_bytes: int | None
    before: int | None
    drawn: int | None
    after: int | None


class Measures:
    """Measures one subject, on ``card`` or, when that is None, on a CPU. What it finds is in ``findings``."""

    def __init__(self, subject: Subject, card: Card | None) -> None:
        self.findings = Findings()
        self.versions: dict[str, str] = {}
        self.dtype = ""
        self._subject = subject
        self._card = card
        self._first: Drawn | None = None
        self._peak_bytes: int | None = None

    def one_image(self) -> None:
        """An image, and another one with everything warm."""
        call = self._subject.call(DEFAULT_PRESET)
        measured = self._measured("one image", call, [[_SEED], [_OTHER_SEED]])
        self.versions, self.dtype = measured.loading.versions, measured.loading.dtype
        self._first, self._peak_bytes = measured.batches[0], measured.peak_bytes
        self._rows(["one image, the first of a process", "one image, the next"], call, measured)

    def batch(self) -> None:
        """Four at once, and one alone in the same process."""
        call = self._subject.call("fast", steps=self._subject.steps)
        measured = self._measured("batch of 4", call, [list(range(_BATCH)), [_OTHER_SEED]])
        self._rows([f"`fast`, a batch of {_BATCH}", "`fast`, one alone"], call, measured)
        together, alone = measured.batches
        self.findings.check("batch of 4: its images differ", len(set(together.digests)) == _BATCH)
        if self._card is not None:
            detail = f"{together.image_s:.2f} s an image, {alone.image_s:.2f} s alone"
            self.findings.check("batch of 4: faster an image than one alone", together.image_s < alone.image_s, detail)

    def low_vram(self) -> None:
        """An image with the preset for small cards."""
        if self._card is None:
            self.findings.left_out.append("low_vram: what it saves is a GPU's memory")
            return
        if self._cannot_offload("low_vram"):
            return
        call = self._subject.call("low_vram")
        measured = self._measured("low_vram", call, [[_SEED]])
        self._rows(["`low_vram`, one image"], call, measured)
        if measured.peak_bytes is not None and self._peak_bytes is not None:
            detail = f"{measured.peak_bytes / _MIB:.0f} MiB, without {self._peak_bytes / _MIB:.0f}"
            self.findings.check("low_vram: a lower peak", measured.peak_bytes < self._peak_bytes, detail)

    def out_of_memory(self) -> None:
        """A real want of memory, beside a ballast; what still goes there, and that nothing of it remains."""
        if self._card is None:
            self.findings.left_out.append("forced OOM: it takes a GPU")
            return
        before = self._card.used_mib()
        with _ballast(_LEFT_FREE_MIB):
            self._check_refusal(self._card)
            if not self._cannot_offload("low_vram beside the ballast"):
                call = self._subject.call("low_vram", steps=4)
                measured = self._measured("low_vram beside the ballast", call, [[_SEED]])
                self._rows([f"`low_vram`, 4 steps with {_LEFT_FREE_MIB} MiB free"], call, measured)
        self._check_memory("forced OOM", before, self._card.settled_mib(before))

    def again(self) -> None:
        """The first image once more, in another process and after all that went wrong."""
        call = self._subject.call(DEFAULT_PRESET)
        measured = self._measured("the same image again", call, [[_SEED]])
        is_same = self._first is not None and measured.batches[0].digests == self._first.digests
        self.findings.check("the same image again: the same pixels in another process", is_same)
        self._rows(["the first image again"], call, measured)

    def schedulers(self) -> None:
        """Every scheduler once."""
        subject = self._subject
        before = self._used()
        with tempfile.TemporaryFile() as output:
            arguments = (str(subject.model), subject.device, subject.size)
            lines = [json.loads(line) for line in run("tests.gpu.schedulers", *arguments, output=output).splitlines()]
        self._check_memory("schedulers", before, self._settled(before))
        failures = [f"{line['scheduler']}: {line['error']}" for line in lines if "error" in line]
        self.findings.check("schedulers: every one draws", not failures, "; ".join(failures))
        self.findings.schedulers = {line["scheduler"]: line["seconds"] for line in lines if "seconds" in line}
        different = len({line["sha256"] for line in lines if "sha256" in line})
        detail = f"{different} of {len(SCHEDULERS)}"
        # With so few steps diffusers' third order is its second: DPM++ 2M SDE and 3M SDE are one.
        self.findings.check("schedulers: no two more alike", different >= len(SCHEDULERS) - 1, detail)

    def _measured(self, what: str, call: PrepareStep, batches: Sequence[Sequence[int]]) -> Measured:
        before = self._used()
        with Step(call) as step:
            loading = step.load()
            drawn = [step.draw(seeds) for seeds in batches]
            # What torch has allocated once it keeps until its process ends.
            held = self._used()
            peak = step.finish().peak_memory
        after = self._settled(before)
        self._check_memory(what, before, after)
        self.findings.check(f"{what}: no image is flat", not any(batch.is_flat for batch in drawn))
        return Measured(loading, drawn, peak, before, held, after)

    def _check_refusal(self, card: Card) -> None:
        before = card.used_mib()
        try:
            with Step(self._subject.call(DEFAULT_PRESET)) as step:
                step.load()
                step.draw([_SEED])
            self.findings.check("forced OOM: the step is refused", False, "it was drawn")
        except StepRefused as refused:
            failed, told = refused.failed, str(refused)
            self.findings.check("forced OOM: the step is refused", failed.code == OutOfMemory.code, told)
            missing = {"requested_bytes", "free_bytes", "total_bytes"} - failed.details.keys()
            self.findings.check("forced OOM: it says what was asked for and what was free", not missing, told)
            advice = " ".join(failed.suggestions)
            self.findings.check("forced OOM: it says what to try", advice != "", advice)
        self._check_memory("forced OOM, beside the ballast", before, card.settled_mib(before))

    def _check_memory(self, what: str, before: int | None, after: int | None) -> None:
        if before is not None and after is not None:
            detail = f"{before} MiB before, {after} MiB after"
            self.findings.check(f"{what}: its memory comes back", after <= before + TOLERANCE_MIB, detail)

    def _rows(self, names: Sequence[str], call: PrepareStep, measured: Measured) -> None:
        for name, batch in zip(names, measured.batches, strict=True):
            self.findings.rows.append(self._row(name, call, measured, batch))

    def _row(self, name: str, call: PrepareStep, measured: Measured, batch: Drawn) -> Row:
        images, weights = len(batch.digests), self._subject.weights_bytes
        estimated = estimated_bytes(call, batch_size=images, weights_bytes=weights) / _MIB if self._card else None
        is_first = batch is measured.batches[0]
        held = measured.drawn - measured.before if measured.drawn is not None and measured.before is not None else None
        return Row(
            what=name,
            images=images,
            image_s=batch.image_s,
            step_s=batch.timings[Stage.DENOISE] / images / call.params["steps"],
            outside=batch.outside,
            estimated_mib=estimated,
            # The others are of the process as a whole.
            start_s=measured.loading.start_s if is_first else None,
            load_s=measured.loading.load_s if is_first else None,
            peak_mib=measured.peak_bytes / _MIB if is_first and measured.peak_bytes else None,
            held_mib=held if is_first else None,
            before_mib=measured.before if is_first else None,
            after_mib=measured.after if is_first else None,
        )

    def _used(self) -> int | None:
        return self._card.used_mib() if self._card else None

    def _settled(self, before: int | None) -> int | None:
        return self._card.settled_mib(before) if self._card and before is not None else None

    def _cannot_offload(self, what: str) -> bool:
        is_lacking = self._card is not None and importlib.util.find_spec("accelerate") is None
        if is_lacking:
            self.findings.left_out.append(f"{what}: it takes accelerate, which is not installed")
        return is_lacking


@contextmanager
def _ballast(free_mib: int) -> Generator[None]:
    with (
        tempfile.TemporaryFile() as output,
        start(
            "tests.gpu.ballast", str(free_mib), output=output, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process,
    ):
        assert process.stdout is not None
        if not process.stdout.readline():
            raise ProgramFailed(f"the ballast ended with {process.wait()}: {tail(output)}")
        try:
            yield
        finally:
            process.kill()
