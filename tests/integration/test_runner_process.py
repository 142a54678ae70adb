"""The real runner in its own process, drawing with the tiny model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dreamforge.errors import GpuError, ModelCorrupt
from dreamforge.jobs.channel import ChannelClosed
from dreamforge.jobs.frames import (
    Acknowledge,
    BeginItem,
    EndOfItems,
    ItemDrawn,
    Log,
    Message,
    ModelLoaded,
    PrepareStep,
    Progress,
    Ready,
    StepDone,
    StepFailed,
)
from dreamforge.jobs.progress import Stage, item_progress
from dreamforge.jobs.schedulers import SCHEDULERS
from dreamforge.worker.child import RunnerProcess

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": os.environ["HOME"]}
PARAMS = {
    "prompt": "a fox",
    "negative_prompt": "blurry",
    "width": 64,
    "height": 64,
    "steps": 3,
    "guidance_scale": 6.5,
    "scheduler": "euler",
}
PATIENCE = 60.0


class Conversation:
    """A runner and everything it has said."""

    def __init__(self, runner: RunnerProcess) -> None:
        self.runner = runner
        self.heard: list[Message] = []

    def until[Kind: Message](self, kind: type[Kind]) -> Kind: ...
