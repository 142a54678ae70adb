"""Every scheduler once, in one process: `python -m tests.gpu.schedulers MODEL DEVICE SIZE`; a line of JSON for each."""

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamforge.jobs.frames import BeginItems
from dreamforge.jobs.presets import DEFAULT_PRESET
from dreamforge.jobs.schedulers import SCHEDULERS
from dreamforge.runners.sdxl import SdxlRunner
from tests.gpu.subject import Subject

STEPS = 4
_SEED = 5


def drawn(subject: Subject) -> Iterator[dict[str, Any]]:
    """By each scheduler the same image: how long it took and what came of it, or what went wrong."""
    call = subject.call(DEFAULT_PRESET, steps=STEPS)
    runner = SdxlRunner(emit=lambda _: None)
    runner.prepare(call)
    for name in SCHEDULERS:
        # The runner takes it from there for each batch; it is not worth loading the model again.
        call.params["scheduler"] = name
        began = time.monotonic()
        try:
            (image,) = runner.run_step(BeginItems(item_indexes=[0], seeds=[_SEED]))
        except Exception as error:  # noqa: BLE001 - the others are still of interest
            yield {"scheduler": name, "error": f"{type(error).__name__}: {error}"}
        else:
            digest = hashlib.sha256(image.pixels).hexdigest()
            yield {"scheduler": name, "seconds": round(time.monotonic() - began, 3), "sha256": digest}
    runner.cleanup()


if __name__ == "__main__":
    for line in drawn(Subject(model=Path(sys.argv[1]), device=sys.argv[2], size=sys.argv[3])):
        sys.stdout.write(json.dumps(line) + "\n")
