"""What a benchmark leaves: a table for the eye, and a file for comparison."""

import argparse
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_WIDTH = 120


def show(*tables: Table) -> None:
    """Print the tables, as wide as they need to be where the output is no terminal."""
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(*tables)


def told(reached: bool) -> str:
    """How a table says whether a target was reached."""
    return "yes" if reached else "NO"


def write(target: Path, arguments: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    """Write the figures as JSON, with what they depend on: the day, the cores, and the command's ``arguments``."""
    parameters = {name: value for name, value in vars(arguments).items() if not isinstance(value, Path)}
    measured = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "parameters": parameters,
        **figures,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(measured, indent=2) + "\n")
