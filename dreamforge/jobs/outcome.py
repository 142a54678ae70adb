"""How an attempt ended."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Failure:
    """An error as clients see it: a code of ``dreamforge.errors``, a sentence, details, what to try."""

    code: str
    message: str
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    suggestions: list[str] = field(default_factory=list[str])

    def as_json(self) -> dict[str, Any]:
        """The error object of jobs and steps."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """What the supervisor reports last. ``failure`` is None when every item is finished."""

    failure: Failure | None = None

    def as_json(self) -> dict[str, Any]:
        """The value stored in ``steps.outcome_json``."""
        return {"failure": self.failure.as_json() if self.failure else None}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Outcome":
        """Inverse of ``as_json``."""
        failure = value.get("failure")
        if not failure:
            return Outcome()
        # Of another version it may have other fields.
        return Outcome(
            Failure(
                str(failure.get("code", "internal")),
                str(failure.get("message", "")),
                failure.get("details") or {},
                failure.get("suggestions") or [],
            )
        )
