"""What tests have measured, told at the end of a run: a plugin of pytest."""

from collections.abc import Callable
from typing import Any

import pytest

_PROPERTY = "figures"

Tell = Callable[..., None]
"""``tell(what, **figures)``: what was measured of it, with the unit at the end of each name (`_s`, `_ms`) or none."""


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Tell:
    """Has a test's figures shown at the end of the run."""

    def note(what: str, **figures: float) -> None:
        request.node.user_properties.append((_PROPERTY, (what, figures)))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print them, test by test."""
    reports: list[Any] = [report for group in terminalreporter.stats.values() for report in group]
    lines = [
        f"{what}: {', '.join(_worded(name, value) for name, value in figures.items())}"
        for report in reports
        if getattr(report, "when", None) == "call"
        for kind, (what, figures) in report.user_properties
        if kind == _PROPERTY
    ]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)


def _worded(name: str, value: float) -> str:
    words, _, unit = name.rpartition("_")
    if unit in {"s", "ms", "mib"}:
        return f"{words.replace('_', ' ')} {value:.3g} {'MiB' if unit == 'mib' else unit}"
    return f"{name.replace('_', ' ')} {value:g}"
