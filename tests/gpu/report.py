"""Measures a full-size SDXL on this machine's GPU: `python -m tests.gpu.report`.

It prints a table, says which of its checks failed, and writes all of it to `build/gpu.json`. The exit code is 1 when
one failed. Run it from the root of a copy of the tree; what it imports is torch, diffusers, transformers, safetensors,
accelerate, Pillow and NumPy, and nothing of the service's. `--size tiny --device cpu` runs the same with a model of a
few megabytes.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.gpu.card import Card, NoCard, first_card
from tests.gpu.measures import Measures
from tests.gpu.program import ROOT, run
from tests.gpu.subject import FULL, TINY, Subject
from tests.gpu.table import checks_text, rows_table

DEFAULT_JSON = ROOT / "build" / "gpu.json"


def main() -> int:
    """Measure, print, write; the exit code."""
    arguments = _arguments()
    try:
        card = first_card() if arguments.device == "cuda" else None
    except NoCard as error:
        sys.stderr.write(f"No GPU to measure: {error}\n")
        return 1
    with tempfile.TemporaryDirectory(prefix="dreamforge-gpu-") as scratch:
        model = arguments.model or _made(Path(scratch), arguments.size, arguments.device)
        measures = Measures(Subject(model=model, device=arguments.device, size=arguments.size), card)
        measure(measures)
    machine = _machine(card, measures)
    sys.stdout.write(_text(machine, measures))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"machine": machine, **asdict(measures.findings)}, indent=2) + "\n")
    return 0 if all(check.has_passed for check in measures.findings.checks) else 1


def measure(measures: Measures) -> None:
    """All measurements. One that fails is a failed check, and the next ones are made all the same."""
    for what in (
        measures.one_image,
        measures.batch,
        measures.low_vram,
        measures.out_of_memory,
        measures.again,
        measures.schedulers,
    ):
        _measure(what, measures)


def _measure(what: Callable[[], None], measures: Measures) -> None:
    name = what.__name__.replace("_", " ")
    began = time.monotonic()
    try:
        what()
    except Exception as error:  # noqa: BLE001 - the edge: whatever went wrong is a finding
        measures.findings.check(f"{name}: it can be measured", False, f"{type(error).__name__}: {error}")
    _say(f"{name}: {time.monotonic() - began:.0f} s")


def _made(folder: Path, size: str, device: str) -> Path:
    began = time.monotonic()
    model = folder / "model"
    with tempfile.TemporaryFile() as output:
        run("tests.gpu.weights", str(model), size, device, output=output)
    _say(f"random weights: {time.monotonic() - began:.0f} s")
    return model


def _machine(card: Card | None, measures: Measures) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": card.name if card else None,
        "gpu_mib": card.total_mib if card else None,
        "driver": card.driver if card else None,
        "dtype": measures.dtype,
        **measures.versions,
    }


def _text(machine: dict[str, Any], measures: Measures) -> str:
    findings = measures.findings
    told = ", ".join(f"{name} {value}" for name, value in machine.items() if value)
    schedulers = ", ".join(f"{name} {seconds:.2f}" for name, seconds in findings.schedulers.items())
    return "\n\n".join(
        [
            told,
            rows_table(findings.rows),
            f"Schedulers, seconds for 4 steps: {schedulers}",
            checks_text(findings),
        ]
    )


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure a full-size SDXL on this machine's GPU.")
    parser.add_argument("--size", choices=[TINY, FULL], default=FULL)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", type=Path, help="a folder in diffusers' layout, instead of random weights")
    parser.add_argument("--json", type=Path, default=DEFAULT_JSON, help="where to write the figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
