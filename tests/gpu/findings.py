"""What measuring has found: rows of figures, and checks that were passed or not."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """Of one batch. Seconds and MiB; None where there is no such figure.

    ``image_s`` is for an image with its file, ``step_s`` for an image's denoising step, ``outside`` the share of time
    outside denoising. ``peak_mib`` is what torch had allocated at the most, ``held_mib`` what the process held of the
    GPU when it had drawn, ``estimated_mib`` what the service takes for the peak before it starts.
    """

    what: str
    images: int
    start_s: float | None = None
    load_s: float | None = None
    image_s: float | None = None
    step_s: float | None = None
    outside: float | None = None
    peak_mib: float | None = None
    held_mib: float | None = None
    estimated_mib: float | None = None
    before_mib: float | None = None
    after_mib: float | None = None


@dataclass(frozen=True)
class Check:
    """Something that must be so. ``detail`` says what was seen."""

    what: str
    has_passed: bool
    detail: str = ""


@dataclass
class Findings:
    """Of one measurement, or of all. ``left_out`` says what could not be measured here, and why."""

    rows: list[Row] = field(default_factory=list[Row])
    checks: list[Check] = field(default_factory=list[Check])
    left_out: list[str] = field(default_factory=list[str])
    schedulers: dict[str, float] = field(default_factory=dict[str, float])

    def check(self, what: str, has_passed: bool, detail: str = "") -> None:
        """Note a check."""
        self.checks.append(Check(what, has_passed, detail))
