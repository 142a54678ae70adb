"""Findings as text: Markdown, so that it can be pasted where it is wanted."""

from collections.abc import Callable, Sequence

from tests.gpu.findings import Findings, Row

Value = Callable[[Row], float | None]
_COLUMNS: tuple[tuple[str, Value, str], ...] = (
    ("process up, s", lambda row: row.start_s, ".1f"),
    ("model loaded, s", lambda row: row.load_s, ".1f"),
    ("s an image", lambda row: row.image_s, ".2f"),
    ("s a step", lambda row: row.step_s, ".3f"),
    ("outside denoising", lambda row: row.outside, ".0%"),
    ("peak, MiB", lambda row: row.peak_mib, ".0f"),
    ("held, MiB", lambda row: row.held_mib, ".0f"),
    ("estimated, MiB", lambda row: row.estimated_mib, ".0f"),
    ("before, MiB", lambda row: row.before_mib, ".0f"),
    ("after, MiB", lambda row: row.after_mib, ".0f"),
)


def rows_table(rows: Sequence[Row]) -> str:
    """A Markdown table, a row for each batch."""
    lines = [["what", *(title for title, _, _ in _COLUMNS)], ["---", *("---:" for _ in _COLUMNS)]]
    lines += [[row.what, *(_told(value(row), form) for _, value, form in _COLUMNS)] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )


def checks_text(findings: Findings) -> str:
    """A line for each check and for what was left out, and how many of them failed."""
    lines = [
        f"- {'ok' if check.has_passed else 'FAILED'}: {check.what}{f' ({check.detail})' if check.detail else ''}"
        for check in findings.checks
    ]
    lines += [f"- left out: {reason}" for reason in findings.left_out]
    failed = sum(not check.has_passed for check in findings.checks)
    return "\n".join([*lines, "", f"{len(findings.checks)} checks, {failed} failed.", ""])


def _told(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
